//! What page checks of one file, and of a whole backup, found.

use std::fmt::Write;

use crate::entry::display_path;
use crate::source::Problem;
use crate::source::postgres::lsn::Lsn;
use crate::source::postgres::page::{Damage, PageState, check_page, page_lsn};

/// The kind of a problem with pages.
pub const BAD_PAGE: &str = "bad-page";

/// How many bad pages of one file are named.
const NAMED: usize = 16;

/// Judges pages of an online backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judge {
    pub block_bytes: u32,
    /// Where replay begins: a page that was changed from here on may be torn as it was read, and replay writes it anew.
    pub start: Lsn,
}

/// What a judge says of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    Good,
    /// Not valid, but changed since the backup began, by its own word: replay repairs it unless this position lies behind the end of the backup.
    Recent(Lsn),
    Bad(Damage),
}

impl Judge {
    /// `block`: number in the relation's fork.
    #[must_use]
    pub fn judge(&self, page: &[u8], block: u32) -> Judgement {
        match check_page(page, block) {
            PageState::Valid | PageState::New => Judgement::Good,
            PageState::Bad(damage) => {
                let lsn = page_lsn(page);
                if lsn >= self.start { Judgement::Recent(lsn) } else { Judgement::Bad(damage) }
            }
        }
    }
}

/// What was found in one file; small however much it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    pub path: Vec<u8>,
    pub bad_pages: u64,
    /// The first ones, with their block numbers.
    pub first_bad: Vec<(u32, Damage)>,
    /// The page with the greatest position among those that replay is to repair.
    pub latest_recent: Option<(Lsn, u32)>,
}

impl Findings {
    #[must_use]
    pub fn new(path: &[u8]) -> Self {
        Self { path: path.to_vec(), ..Self::default() }
    }

    /// Whether there is nothing to tell: only then may a stamp vouch for the file next time, or what is bad would be told once and then never again.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bad_pages == 0 && self.latest_recent.is_none()
    }

    pub fn add(&mut self, block: u32, judgement: Judgement) {
        match judgement {
            Judgement::Good => {}
            Judgement::Recent(lsn) => {
                if self.latest_recent.is_none_or(|(latest, _)| latest < lsn) {
                    self.latest_recent = Some((lsn, block));
                }
            }
            Judgement::Bad(damage) => {
                self.bad_pages += 1;
                if self.first_bad.len() < NAMED {
                    self.first_bad.push((block, damage));
                }
            }
        }
    }

    /// What the operator must know, when the backup's last position is `stop`.
    #[must_use]
    pub fn problem(&self, stop: Lsn) -> Option<Problem> {
        let mut message = String::new();
        if self.bad_pages > 0 {
            let _ = write!(message, "{} damaged page(s) on the server:", self.bad_pages);
            for (block, damage) in &self.first_bad {
                let _ = write!(message, " block {block}: {damage};");
            }
            let unnamed = self.bad_pages - u64::try_from(self.first_bad.len()).unwrap_or(0);
            if unnamed > 0 {
                let _ = write!(message, " and {unnamed} more;");
            }
        }
        if let Some((lsn, block)) = self.latest_recent.filter(|&(lsn, _)| lsn > stop) {
            let _ = write!(message, " block {block} is not valid and claims a change at {lsn}, after the end of this backup at {stop};");
        }
        if message.is_empty() {
            return None;
        }
        let message = message.trim_matches(|letter| matches!(letter, ' ' | ';')).to_owned();
        Some(Problem { object: display_path(&self.path), kind: BAD_PAGE.into(), message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::postgres::page::checksum;

    fn page(lsn: u64, block: u32) -> Vec<u8> {
        let mut page = vec![7; 8192];
        page[..4].copy_from_slice(&u32::try_from(lsn >> 32).unwrap().to_le_bytes());
        page[4..8].copy_from_slice(&u32::try_from(lsn & 0xFFFF_FFFF).unwrap().to_le_bytes());
        for (at, value) in [(10, 0u16), (12, 28), (14, 8000), (16, 8192), (18, 8196)] {
            page[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        let sum = checksum(&page, block);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        page
    }

    #[test]
    fn old_damage_is_told_and_new_damage_left_to_replay_up_to_the_end() {
        let judge = Judge { block_bytes: 8192, start: Lsn(1000) };
        assert_eq!(judge.judge(&page(5, 3), 3), Judgement::Good);
        assert_eq!(judge.judge(&vec![0; 8192], 3), Judgement::Good);
        assert!(matches!(judge.judge(&page(5, 3), 4), Judgement::Bad(Damage::Checksum { .. })), "a page at another place");
        assert_eq!(judge.judge(&page(1000, 3), 4), Judgement::Recent(Lsn(1000)));
        assert!(matches!(judge.judge(&page(999, 3), 4), Judgement::Bad(_)));
        let mut not_new = vec![0; 8192];
        not_new[8191] = 1;
        assert_eq!(judge.judge(&not_new, 0), Judgement::Bad(Damage::NotEmpty));

        let mut findings = Findings::new(b"base/5/16384");
        assert!(findings.is_empty() && findings.problem(Lsn(0)).is_none());
        findings.add(9, Judgement::Recent(Lsn(2000)));
        findings.add(8, Judgement::Recent(Lsn(1500)));
        assert!(!findings.is_empty());
        assert_eq!(findings.problem(Lsn(2000)), None);
        assert!(findings.problem(Lsn(1999)).unwrap().message.contains("block 9 is not valid and claims a change at 0/7D0"));
        for block in 0..20 {
            findings.add(block, Judgement::Bad(Damage::Header));
        }
        let problem = findings.problem(Lsn(2000)).unwrap();
        assert_eq!((problem.object.as_str(), problem.kind.as_str()), ("base/5/16384", "bad-page"));
        assert!(problem.message.starts_with("20 damaged page(s)") && problem.message.ends_with("and 4 more"), "{}", problem.message);
    }
}
