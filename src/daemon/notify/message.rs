//! What each kind of webhook gets, and how it says that it took it. Pure.
//!
//! Forms and limits: Slack, "Sending messages using incoming webhooks"; DingTalk, custom robots (自定义机器人接入, 安全设置: 加签); WeCom, group
//! robots (群机器人配置说明: markdown of at most 4096 bytes); Feishu, custom bots (自定义机器人使用指南, 签名校验).

use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use serde_json::{Value, json};

use crate::daemon::notify::event::{Event, Notice, Severity, one_line, shortened_bytes};
use crate::error::{Error, Kind, Result};
use crate::plan::WebhookForm;

/// Most bytes of a text, below what the services take.
const MOST_SLACK: usize = 3500;
const MOST_DINGTALK: usize = 18_000;
const MOST_WECOM: usize = 4000;
const MOST_FEISHU: usize = 18_000;

/// What is sent: JSON, as text.
///
/// # Errors
/// `Usage` when a template cannot be filled or does not yield JSON.
pub fn body(form: &WebhookForm, notice: &Notice) -> Result<String> {
    let value = match form {
        WebhookForm::Generic => {
            serde_json::to_value(notice).map_err(|error| Error::new(Kind::Bug, "write a notice as JSON").because(error))?
        }
        WebhookForm::Slack => json!({ "text": shortened_bytes(&lines(notice, escaped_for_slack, "*", "*", "• "), MOST_SLACK) }),
        WebhookForm::DingTalk(_) => json!({
            "msgtype": "markdown",
            "markdown": {
                "title": notice.title,
                // One line break of Markdown is none in DingTalk.
                "text": shortened_bytes(&lines(notice, escaped_markdown, "### ", "", "- ").replace('\n', "\n\n"), MOST_DINGTALK),
            },
        }),
        WebhookForm::WeCom => json!({
            "msgtype": "markdown",
            "markdown": { "content": shortened_bytes(&lines(notice, escaped_markdown, "**", "**", "> "), MOST_WECOM) },
        }),
        WebhookForm::Feishu(_) => json!({
            "msg_type": "text",
            "content": { "text": shortened_bytes(&lines(notice, escaped_for_feishu, "", "", "- "), MOST_FEISHU) },
        }),
        WebhookForm::Template(text) => return filled(text, notice),
    };
    Ok(value.to_string())
}

/// A heading with a mark, and a line for each event.
fn lines(notice: &Notice, escape: fn(&str) -> String, before: &str, after: &str, bullet: &str) -> String {
    let mark = match notice.severity {
        Severity::Critical => "🔴",
        Severity::Warning => "🟡",
        Severity::Ok => "🟢",
    };
    let mut text = format!("{before}{mark} {}{after}\n", escape(&notice.title));
    if notice.count > 1 {
        for line in notice.text.lines() {
            text.push_str(bullet);
            text.push_str(&escape(line));
            text.push('\n');
        }
    }
    text + bullet + &escape(&format!("host {}, {}", notice.host, notice.time.format("%Y-%m-%d %H:%M:%S UTC")))
}

/// Slack's three control characters; what looks like a link or a mention is then a text.
fn escaped_for_slack(text: &str) -> String {
    one_line(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// No mention, link, picture or emphasis comes out of an error message.
fn escaped_markdown(text: &str) -> String {
    one_line(text).chars().fold(String::new(), |mut out, c| {
        match c {
            '<' => out.push('＜'),
            '>' => out.push('＞'),
            '@' => out.push('＠'),
            '*' | '[' | ']' | '`' | '#' | '_' | '!' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
        out
    })
}

/// A text may mention people by `<at …>`.
fn escaped_for_feishu(text: &str) -> String {
    one_line(text).replace('<', "＜").replace('>', "＞")
}

/// A template of the operator, filled with the notice. Every `{{ value }}` becomes JSON.
fn filled(template: &str, notice: &Notice) -> Result<String> {
    let failed = |error: minijinja::Error| {
        Error::new(Kind::Usage, "fill the template of the webhook").because(error).hint("its values are those of `lifeboat.notice/1`")
    };
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Json);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    let text = environment.render_str(template, minijinja::value::Serde(notice)).map_err(failed)?;
    serde_json::from_str::<Value>(&text).map_err(|error| {
        Error::new(Kind::Usage, "the template of the webhook does not yield JSON")
            .because(error)
            .hint("leave quotes around {{ value }} out: each becomes JSON itself; join texts with ~")
    })?;
    Ok(text)
}

/// Whether the answer of a service says that it took the message, which some say with 200 also when they did not. `Err`: why not.
///
/// # Errors
/// `Failed`, with the service's own number and text.
pub fn accepted(form: &WebhookForm, answer: &str) -> Result<()> {
    let (number, text) = match form {
        WebhookForm::Generic | WebhookForm::Slack | WebhookForm::Template(_) => return Ok(()),
        WebhookForm::DingTalk(_) | WebhookForm::WeCom => (&["errcode"][..], "errmsg"),
        WebhookForm::Feishu(_) => (&["code", "StatusCode"][..], "msg"),
    };
    let value: Value = serde_json::from_str(answer).unwrap_or_default();
    let code = number.iter().find_map(|field| value.get(field)?.as_i64());
    match code {
        Some(0) => Ok(()),
        Some(code) => {
            let why = value.get(text).and_then(Value::as_str).unwrap_or_default();
            Err(Error::new(Kind::Failed, format!("it answered with error {code}: {}", one_line(why))))
        }
        None => Err(Error::new(Kind::Failed, "its answer does not say that it took the message")),
    }
}

/// An event that tells of nothing, for `lifeboat notify test`.
#[must_use]
pub fn test_event(id: String, now: chrono::DateTime<chrono::Utc>) -> Event {
    Event {
        id,
        time: now,
        occasion: "test".to_owned(),
        change: crate::daemon::notify::event::Change::Happened,
        plan: None,
        job: None,
        problem: None,
        since: None,
        run: None,
        message: "this is a test: whoever reads it would be told".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Occasion;

    fn notice(messages: &[&str]) -> Notice {
        let now = "2026-11-20T02:00:00Z".parse().unwrap();
        let event = |message: &&str| Event {
            occasion: Occasion::Failure.word().into(),
            plan: Some("crm".into()),
            message: (*message).to_owned(),
            ..test_event("e".into(), now)
        };
        Notice::new("ops", "db1", &messages.iter().map(event).collect::<Vec<_>>(), 0, now)
    }

    fn value(form: &WebhookForm, notice: &Notice) -> Value {
        serde_json::from_str(&body(form, notice).unwrap()).unwrap()
    }

    #[test]
    fn every_ready_form_is_what_its_service_takes() {
        let one = notice(&["the last backup failed: a <b> & @all [x](y)"]);
        assert_eq!(value(&WebhookForm::Generic, &one)["schema"], "lifeboat.notice/1");
        assert_eq!(
            value(&WebhookForm::Slack, &one),
            json!({ "text": "*🔴 lifeboat: crm: failure — the last backup failed: a &lt;b&gt; &amp; @all [x](y)*\n• host db1, 2026-11-20 02:00:00 UTC" })
        );
        assert_eq!(
            value(&WebhookForm::WeCom, &one),
            json!({ "msgtype": "markdown", "markdown": { "content": "**🔴 lifeboat: crm: failure — the last backup failed: a ＜b＞ & ＠all \\[x\\](y)**\n> host db1, 2026-11-20 02:00:00 UTC" } })
        );
        let ding = value(&WebhookForm::DingTalk(None), &one);
        assert_eq!((ding["msgtype"].as_str(), ding["markdown"]["title"].as_str()), (Some("markdown"), Some(one.title.as_str())));
        let feishu = value(&WebhookForm::Feishu(None), &one);
        assert_eq!(feishu["msg_type"], "text");
        assert!(feishu["content"]["text"].as_str().unwrap().contains("a ＜b＞ & @all"), "{feishu}");
    }

    #[test]
    fn a_digest_fits_into_every_service() {
        let long = "数据".repeat(300);
        let many = notice(&[long.as_str(); 100]);
        let size = |form: &WebhookForm, at: &str| value(form, &many).pointer(at).unwrap().as_str().unwrap().len();
        assert!(size(&WebhookForm::Slack, "/text") <= 4000);
        assert!(size(&WebhookForm::WeCom, "/markdown/content") <= 4096);
        assert!(size(&WebhookForm::DingTalk(None), "/markdown/text") <= 20_000);
        assert!(size(&WebhookForm::Feishu(None), "/content/text") <= 20_000);
    }

    #[test]
    fn a_template_yields_json_whatever_the_values_are() {
        let notice = notice(&["quotes \" and \\ and\nlines"]);
        let template = r#"{"summary": {{ "[" ~ host ~ "] " ~ title }}, "n": {{ count }}, "plans": [{% for e in events %}{{ e.plan }}{% if not loop.last %},{% endif %}{% endfor %}]}"#;
        let filled = value(&WebhookForm::Template(template.into()), &notice);
        assert_eq!(filled, json!({ "summary": format!("[db1] {}", notice.title), "n": 1, "plans": ["crm"] }));
        for (template, why) in [("{{ titel }}", "fill the template"), ("{\"a\": \"{{ title }}\"}", "does not yield JSON")] {
            let error = body(&WebhookForm::Template(template.into()), &notice).unwrap_err();
            assert!(error.kind() == Kind::Usage && error.to_string().contains(why), "{error:?}");
        }
    }

    #[test]
    fn the_examples_template_is_filled() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("plans/notify.toml");
        let plans = crate::plan::Plans::load(&[path]).unwrap();
        let crate::plan::NotifierKind::Webhook { form, .. } = &plans.notifier("own-form").unwrap().kind else { panic!("no webhook") };
        let filled = value(form, &notice(&["a \"b\"", "c"]));
        assert_eq!((&filled["level"], &filled["plans"]), (&json!(1), &json!(["crm", "crm"])), "{filled}");
    }

    #[test]
    fn an_answer_of_200_that_says_no_is_a_failure() {
        let ding = WebhookForm::DingTalk(None);
        accepted(&ding, r#"{"errcode":0,"errmsg":"ok"}"#).unwrap();
        let error = accepted(&ding, r#"{"errcode":310000,"errmsg":"sign not match"}"#).unwrap_err();
        assert_eq!(error.to_string(), "it answered with error 310000: sign not match");
        accepted(&WebhookForm::Feishu(None), r#"{"StatusCode":0}"#).unwrap();
        assert!(accepted(&WebhookForm::Feishu(None), r#"{"code":19021,"msg":"sign match fail"}"#).is_err());
        assert!(accepted(&WebhookForm::WeCom, "<html>a proxy</html>").is_err());
        accepted(&WebhookForm::Slack, "ok").unwrap();
    }
}
