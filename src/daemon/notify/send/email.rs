//! One e-mail, always over TLS.

use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::message::{Mailbox, Message};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Tokio1Executor};

use crate::daemon::notify::event::{Notice, one_line};
use crate::error::{Context as _, Error, IoContext as _, Kind, Result};
use crate::plan::{Notifier, NotifierKind};

/// RFC 8314: submission over implicit TLS, and with STARTTLS.
pub(in crate::daemon::notify) const IMPLICIT_PORT: u16 = 465;
pub(in crate::daemon::notify) const STARTTLS_PORT: u16 = 587;

/// Sends it; what the server said.
///
/// # Errors
/// As [`deliver`](crate::daemon::notify::send::deliver).
pub(super) async fn send(notifier: &Notifier, notice: &Notice) -> Result<String> {
    let NotifierKind::Email { server, from, to, credentials, ca_file } = &notifier.kind else {
        return Err(Error::new(Kind::Bug, "only an e-mail is mailed"));
    };
    let host = server.host_str().unwrap_or_default();
    let mut tls = TlsParameters::builder(host.trim_matches(['[', ']']).to_owned());
    if let Some(path) = ca_file {
        let pem = std::fs::read(path)
            .io_context(|| format!("read the certificates {}", path.display()))
            .map_err(|error| Error::new(Kind::Usage, "use `ca_file` of the notifier").because(error))?;
        tls = tls.add_root_certificate(
            Certificate::from_pem(&pem).context(Kind::Usage, || format!("read the certificates {}", path.display()))?,
        );
    }
    let tls = tls.build().context(Kind::Usage, || "prepare TLS with the mail server".to_owned())?;
    let (tls, port) = if server.scheme() == "smtps" { (Tls::Wrapper(tls), IMPLICIT_PORT) } else { (Tls::Required(tls), STARTTLS_PORT) };
    let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(host)
        .port(server.port().unwrap_or(port))
        .tls(tls)
        .timeout(Some(notifier.timeout));
    if let Some((username, password)) = credentials {
        transport = transport.credentials(Credentials::new(username.clone(), password.resolve()?.expose().to_owned()));
    }
    let message = message(from, to, notice)?;
    let answer = transport.build().send(message).await.map_err(|error| {
        let kind = if error.is_permanent() { Kind::Failed } else { Kind::Unavailable };
        let mut texts = vec![one_line(&error.to_string())];
        let mut next = std::error::Error::source(&error);
        while let Some(cause) = next {
            let text = one_line(&cause.to_string());
            if !texts.iter().any(|known| known.contains(&text)) {
                texts.push(text);
            }
            next = cause.source();
        }
        Error::new(kind, format!("mail by {host}: {}", texts.join(": ")))
    })?;
    Ok(format!("{} {}", answer.code(), answer.message().map(one_line).collect::<Vec<_>>().join(" ")).trim().to_owned())
}

fn message(from: &str, to: &[String], notice: &Notice) -> Result<Message> {
    let mailbox = |address: &str| address.parse::<Mailbox>().context(Kind::Usage, || format!("use the e-mail address {address}"));
    let mut builder = Message::builder().from(mailbox(from)?);
    for address in to {
        builder = builder.to(mailbox(address)?);
    }
    let domain = from.rsplit_once('@').map_or("localhost", |(_, domain)| domain);
    let header = |name: &'static str, value: &str| HeaderValue::new(HeaderName::new_from_ascii_str(name), value.to_owned());
    builder
        // The same notice delivered again is the same mail to a server that looks.
        .message_id(Some(format!("<{}.{}@{domain}>", notice.id, notice.notifier)))
        .subject(one_line(&notice.title))
        // RFC 3834: nobody's holiday answers it.
        .raw_header(header("Auto-Submitted", "auto-generated"))
        .header(ContentType::TEXT_PLAIN)
        .body(text(notice))
        .context(Kind::Bug, || "write the e-mail".to_owned())
}

fn text(notice: &Notice) -> String {
    let mut text = format!("{}\n\n", notice.text);
    for event in notice.events.iter().filter(|_| notice.count == 1) {
        if let Some(since) = event.since {
            text = format!("{text}since   {}\n", since.format("%Y-%m-%d %H:%M:%S UTC"));
        }
        if let Some(run) = &event.run {
            text = format!("{text}run     {run} (lifeboat run show {run})\n");
        }
    }
    text + &format!("host    {}\ntime    {}\n", notice.host, notice.time.format("%Y-%m-%d %H:%M:%S UTC"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::notify::message::test_event;

    #[test]
    fn a_mail_says_what_it_is_in_utf_8_and_nothing_gets_into_its_headers() {
        let now = "2026-11-20T02:00:00Z".parse().unwrap();
        let mut event = test_event("e1".into(), now);
        event.plan = Some("客户".into());
        event.message = "bad\r\nBcc: evil@example.com".into();
        let notice = Notice::new("dba", "db1", &[event], 0, now);
        let mail = message("lifeboat@example.com", &["a@example.com".into(), "b@example.com".into()], &notice).unwrap();
        let text = String::from_utf8(mail.formatted()).unwrap();
        let head = text.split("\r\n\r\n").next().unwrap();
        assert!(head.contains("Message-ID: <e1.dba@example.com>") && head.contains("Auto-Submitted: auto-generated"), "{head}");
        assert!(head.contains("To: a@example.com, b@example.com") && head.contains("Subject: "), "{head}");
        assert!(!head.lines().any(|line| line.starts_with("Bcc")), "{head}");
    }
}
