//! Asks several places beside each other, and waits for none longer than it gives signs: whoever asks how things stand must hear something.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use crate::daemon::status::Unasked;
use crate::error::{Error, Kind, Result};
use crate::event::{Cancel, Pulse, Silence};
use crate::ops::explain;

/// Places that are asked at the same time: opening a repository takes memory for its key.
const AT_ONCE: usize = 8;

/// How soon it is noticed that nobody waits any more, or that a place is silent.
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

/// What is heard of a place.
#[derive(Debug)]
pub enum News<A> {
    Answer(A),
    /// Why there may be no more. Said once at most, and last.
    NoMore(Unasked),
}

enum Sign<A> {
    Answer(A),
    Over { panicked: bool },
}

/// Starts a thread.
type Start<'a> = &'a dyn Fn(Box<dyn FnOnce() + Send>) -> std::io::Result<()>;

/// Puts each question to its place by `ask`, in a thread of its own, which may outlive this: `ask` hands over each answer as it comes, and beats to say
/// only that it goes on. `pulse` beats until this ends: a place that is silent is not waited for. The answers are in the order of the questions.
///
/// # Errors
/// `Interrupted`, and nothing else: that no thread can be started is said of the place that it was for.
pub fn ask<Q: Send + 'static, A: Send + 'static>(
    questions: Vec<Q>,
    pace: Pace,
    pulse: &Pulse,
    cancel: &Cancel,
    ask: impl Fn(&Q, &Pulse, &dyn Fn(A)) + Clone + Send + 'static,
) -> Result<Vec<Said<A>>> {
    let mut said: Vec<Said<A>> = questions.iter().map(|_| Said { answers: Vec::new(), why: None }).collect();
    hear(questions, pace, pulse, cancel, ask, |at, news| {
        match news {
            News::Answer(answer) => said[at].answers.push(answer),
            News::NoMore(why) => said[at].why = Some(why),
        }
        Ok(())
    })?;
    Ok(said)
}

/// The same; each answer is heard when it comes, with the place of its question.
///
/// # Errors
/// `Interrupted`; what `hear` says.
pub fn hear<Q: Send + 'static, A: Send + 'static>(
    questions: Vec<Q>,
    pace: Pace,
    pulse: &Pulse,
    cancel: &Cancel,
    ask: impl Fn(&Q, &Pulse, &dyn Fn(A)) + Clone + Send + 'static,
    hear: impl FnMut(usize, News<A>) -> Result<()>,
) -> Result<()> {
    let start = |work: Box<dyn FnOnce() + Send>| std::thread::Builder::new().name("ask".into()).spawn(work).map(drop);
    put(questions, pace, pulse, cancel, ask, hear, &start)
}

fn put<Q: Send + 'static, A: Send + 'static>(
    questions: Vec<Q>,
    pace: Pace,
    pulse: &Pulse,
    cancel: &Cancel,
    ask: impl Fn(&Q, &Pulse, &dyn Fn(A)) + Clone + Send + 'static,
    mut hear: impl FnMut(usize, News<A>) -> Result<()>,
    start: Start<'_>,
) -> Result<()> {
    let (sender, signs) = channel();
    let mut waiting = questions.into_iter().enumerate();
    let mut asked: BTreeMap<usize, Silence> = BTreeMap::new();
    loop {
        cancel.check()?;
        pulse.beat();
        let silences: Vec<Duration> = asked.values_mut().map(Silence::lasts).collect();
        let mut at_work = silences.iter().filter(|silence| **silence < pace.stalled).count();
        while at_work < AT_ONCE
            && let Some((at, question)) = waiting.next()
        {
            let (sender, ask, own) = (sender.clone(), ask.clone(), Pulse::default());
            let silence = Silence::of(&own);
            let work = move || {
                // Whoever asked may have gone.
                let tell = |sign| drop(sender.send((at, sign)));
                let answer = |answer: A| {
                    own.beat();
                    tell(Sign::Answer(answer));
                };
                let ended = std::panic::catch_unwind(AssertUnwindSafe(|| ask(&question, &own, &answer)));
                tell(Sign::Over { panicked: ended.is_err() });
            };
            match start(Box::new(work)) {
                Ok(()) => {
                    asked.insert(at, silence);
                    at_work += 1;
                }
                // The others are asked all the same.
                Err(error) => {
                    let error = Error::io("start a thread to ask it", error);
                    hear(at, News::NoMore(Unasked { kind: error.kind(), message: explain(&error), secret: false }))?;
                }
            }
        }
        if asked.is_empty() {
            return Ok(());
        }
        match signs.recv_timeout(LOOK) {
            Ok((at, Sign::Answer(answer))) => hear(at, News::Answer(answer))?,
            Ok((at, Sign::Over { panicked })) => {
                asked.remove(&at);
                if panicked {
                    let message = "asking it panicked; please report this".to_owned();
                    hear(at, News::NoMore(Unasked { kind: Kind::Bug, message, secret: false }))?;
                }
            }
            // All that is still asked: one that answers meanwhile is heard.
            Err(RecvTimeoutError::Timeout) if asked.values_mut().any(|silence| silence.lasts() < pace.patience) => {}
            Err(_) => break,
        }
    }
    for at in asked.into_keys().chain(waiting.map(|(at, _)| at)) {
        let message = format!("there was no answer for {} s, and more was not waited for", pace.patience.as_secs());
        hear(at, News::NoMore(Unasked { kind: Kind::Unavailable, message, secret: false }))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Instant;

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
            &Pulse::default(),
            &Cancel::default(),
            move |question: &usize, _: &Pulse, tell: &dyn Fn(usize)| {
                if *question < last { hang() } else { tell(*question) }
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
        let said = ask(
            vec!["slow", "half"],
            PACE,
            &Pulse::default(),
            &Cancel::default(),
            |question: &&str, pulse: &Pulse, tell: &dyn Fn(&'static str)| {
                if *question == "half" {
                    tell("first");
                    hang();
                }
                for _ in 0..6 {
                    std::thread::sleep(PACE.patience / 3);
                    pulse.beat();
                }
                tell("after long");
            },
        )
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
        let said = ask(questions, pace, &Pulse::default(), &Cancel::default(), move |question: &usize, _: &Pulse, tell: &dyn Fn(usize)| {
            seen.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(20));
            now.fetch_sub(1, Ordering::SeqCst);
            tell(*question);
        })
        .unwrap();
        assert!(said.iter().enumerate().all(|(at, said)| said.answers == [at] && said.why.is_none()));
        assert!(most.load(Ordering::SeqCst) <= AT_ONCE);
    }

    #[test]
    fn a_thread_that_cannot_be_started_is_of_its_place_alone() {
        let started = AtomicUsize::new(0);
        let start = |work: Box<dyn FnOnce() + Send>| {
            if started.fetch_add(1, Ordering::SeqCst) == 1 {
                return Err(std::io::Error::from_raw_os_error(11));
            }
            std::thread::Builder::new().spawn(work).map(drop)
        };
        let mut said: BTreeMap<usize, std::result::Result<usize, Unasked>> = BTreeMap::new();
        let answer = |question: &usize, _: &Pulse, tell: &dyn Fn(usize)| tell(*question);
        let hear_it = |at, news| {
            said.insert(
                at,
                match news {
                    News::Answer(answer) => Ok(answer),
                    News::NoMore(why) => Err(why),
                },
            );
            Ok(())
        };
        put(vec![0, 1, 2], PACE, &Pulse::default(), &Cancel::default(), answer, hear_it, &start).unwrap();
        assert_eq!((&said[&0], &said[&2]), (&Ok(0), &Ok(2)));
        let why = said[&1].as_ref().unwrap_err();
        assert!(why.kind == Kind::Failed && why.message.contains("start a thread to ask it"), "{why:?}");
    }

    #[test]
    fn a_panic_is_of_its_place_alone_and_nobody_waits_after_an_interruption() {
        // Where others work too, a panic takes its time to say where it was.
        let pace = Pace { patience: Duration::from_mins(1), ..PACE };
        let said =
            ask(vec![false, true], pace, &Pulse::default(), &Cancel::default(), |question: &bool, _: &Pulse, tell: &dyn Fn(bool)| {
                assert!(!question, "planted");
                tell(*question);
            })
            .unwrap();
        assert_eq!((said[0].answers.as_slice(), &said[0].why), ([false].as_slice(), &None));
        assert_eq!(said[1].why.as_ref().unwrap().kind, Kind::Bug);
        let cancel = Cancel::default();
        let asked = cancel.clone();
        let ended = ask(vec![()], PACE, &Pulse::default(), &cancel, move |(): &(), _: &Pulse, _: &dyn Fn(())| {
            asked.cancel();
            hang();
        });
        assert_eq!(ended.unwrap_err().kind(), Kind::Interrupted);
    }
}
