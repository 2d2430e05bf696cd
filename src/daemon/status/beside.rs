//! Asks several places beside each other, and waits for none longer than it gives signs: whoever asks how things stand must hear something.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::daemon::status::Unasked;
use crate::error::{Error, Kind, Result};
use crate::event::Cancel;

/// Places that are asked at the same time: opening a repository takes memory for its key.
const AT_ONCE: usize = 8;

/// How soon it is noticed that nobody waits any more.
const LOOK: Duration = Duration::from_millis(100);

/// How long is waited for signs.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// What gives no sign for so long is not waited for. Longer than a sound repository takes to open and to list what is in it.
    pub patience: Duration,
    /// What gives no sign for so long keeps nothing else from being asked: a place that hangs has a thread and costs little else.
    pub stalled: Duration,
}

impl Pace {
    /// For people who wait.
    pub const STATUS: Self = Self { patience: Duration::from_mins(1), stalled: Duration::from_secs(5) };
}

/// What one place said.
#[derive(Debug)]
pub struct Said<A> {
    pub answers: Vec<A>,
    /// Why there may be no more.
    pub why: Option<Unasked>,
}

enum Sign<A> {
    Alive,
    Answer(A),
    Over { panicked: bool },
}

/// Puts each question to its place by `ask`, in a thread of its own, which may outlive this: `ask` hands over each answer as it comes, and `None` to
/// say only that it goes on. The answers are in the order of the questions.
///
/// # Errors
/// `Interrupted`; when no thread can be started.
pub fn ask<Q: Send + 'static, A: Send + 'static>(
    questions: Vec<Q>,
    pace: Pace,
    cancel: &Cancel,
    ask: impl Fn(&Q, &dyn Fn(Option<A>)) + Clone + Send + 'static,
) -> Result<Vec<Said<A>>> {
    let (sender, signs) = channel();
    let mut said: Vec<Said<A>> = questions.iter().map(|_| Said { answers: Vec::new(), why: None }).collect();
    let mut waiting = questions.into_iter().enumerate();
    // With the last sign of each.
    let mut asked: BTreeMap<usize, Instant> = BTreeMap::new();
    loop {
        cancel.check()?;
        while asked.values().filter(|sign| sign.elapsed() < pace.stalled).count() < AT_ONCE
            && let Some((at, question)) = waiting.next()
        {
            let (sender, ask) = (sender.clone(), ask.clone());
            let work = move || {
                // Whoever asked may have gone.
                let tell = |sign| drop(sender.send((at, sign)));
                let answer = |answer: Option<A>| tell(answer.map_or(Sign::Alive, Sign::Answer));
                let ended = std::panic::catch_unwind(AssertUnwindSafe(|| ask(&question, &answer)));
                tell(Sign::Over { panicked: ended.is_err() });
            };
            std::thread::Builder::new()
                .name("ask".into())
                .spawn(work)
                .map_err(|error| Error::io("start a thread to ask a repository", error))?;
            asked.insert(at, Instant::now());
        }
        if asked.is_empty() {
            break;
        }
        match signs.recv_timeout(LOOK) {
            Ok((at, Sign::Over { panicked })) => {
                asked.remove(&at);
                said[at].why = panicked.then(|| Unasked {
                    kind: Kind::Bug,
                    message: "asking it panicked; please report this".to_owned(),
                    secret: false,
                });
            }
            Ok((at, sign)) => {
                asked.insert(at, Instant::now());
                if let Sign::Answer(answer) = sign {
                    said[at].answers.push(answer);
                }
            }
            // All that is still asked: one that answers meanwhile is heard.
            Err(RecvTimeoutError::Timeout) if asked.values().any(|sign| sign.elapsed() < pace.patience) => {}
            Err(_) => break,
        }
    }
    for at in asked.into_keys() {
        let message = format!("there was no answer for {} s, and more was not waited for", pace.patience.as_secs());
        said[at].why = Some(Unasked { kind: Kind::Unavailable, message, secret: false });
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const PACE: Pace = Pace { patience: Duration::from_millis(1500), stalled: Duration::from_millis(200) };

    /// Hangs for longer than anything here waits, until the test ends.
    fn hang() {
        std::thread::sleep(Duration::from_mins(1));
    }

    #[test]
    fn what_hangs_keeps_nothing_else_from_being_asked() {
        let began = Instant::now();
        // More than are asked at once, all before the two that answer.
        let questions: Vec<usize> = (0..3 * AT_ONCE).collect();
        let last = questions.len() - 2;
        let said = ask(
            questions,
            PACE,
            &Cancel::default(),
            move |question: &usize, tell: &dyn Fn(Option<usize>)| {
                if *question < last { hang() } else { tell(Some(*question)) }
            },
        )
        .unwrap();
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        for (at, said) in said.iter().enumerate() {
            let expected = if at < last { vec![] } else { vec![at] };
            assert_eq!(
                (&said.answers, said.why.as_ref().map(|why| why.kind)),
                (&expected, (at < last).then_some(Kind::Unavailable)),
                "{at}"
            );
        }
    }

    #[test]
    fn signs_are_waited_for_and_what_was_said_before_stays() {
        let said = ask(vec!["slow", "half"], PACE, &Cancel::default(), |question: &&str, tell: &dyn Fn(Option<&'static str>)| {
            if *question == "half" {
                tell(Some("first"));
                hang();
            }
            for _ in 0..6 {
                std::thread::sleep(PACE.patience / 3);
                tell(None);
            }
            tell(Some("after long"));
        })
        .unwrap();
        assert_eq!((said[0].answers.as_slice(), &said[0].why), (["after long"].as_slice(), &None));
        assert_eq!(said[1].answers, ["first"]);
        assert!(said[1].why.as_ref().unwrap().message.contains("no answer for 1 s"));
    }

    #[test]
    fn no_more_are_asked_at_once_while_they_give_signs() {
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let seen = Arc::clone(&most);
        let pace = Pace { stalled: Duration::from_mins(1), ..PACE };
        let questions: Vec<usize> = (0..3 * AT_ONCE).collect();
        let said = ask(questions, pace, &Cancel::default(), move |question: &usize, tell: &dyn Fn(Option<usize>)| {
            seen.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(20));
            now.fetch_sub(1, Ordering::SeqCst);
            tell(Some(*question));
        })
        .unwrap();
        assert!(said.iter().enumerate().all(|(at, said)| said.answers == [at] && said.why.is_none()));
        assert!(most.load(Ordering::SeqCst) <= AT_ONCE);
    }

    #[test]
    fn a_panic_is_of_its_place_alone_and_nobody_waits_after_an_interruption() {
        let said = ask(vec![false, true], PACE, &Cancel::default(), |question: &bool, tell: &dyn Fn(Option<bool>)| {
            assert!(!question, "planted");
            tell(Some(*question));
        })
        .unwrap();
        assert_eq!((said[0].answers.as_slice(), &said[0].why), ([false].as_slice(), &None));
        assert_eq!(said[1].why.as_ref().unwrap().kind, Kind::Bug);
        let cancel = Cancel::default();
        let asked = cancel.clone();
        let ended = ask(vec![()], PACE, &cancel, move |(): &(), _: &dyn Fn(Option<()>)| {
            asked.cancel();
            hang();
        });
        assert_eq!(ended.unwrap_err().kind(), Kind::Interrupted);
    }
}
