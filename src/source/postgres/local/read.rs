//! Reading one file of a running server.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::event::Cancel;
use crate::source::postgres::findings::{Findings, Judge, Judgement};

/// How often a page that fails is read again, and the first pause; each is twice the one before: 150 ms in all.
const TRIES: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// A file with more bad pages than this is damaged, not torn: no more pauses.
const PATIENT_PAGES: u64 = 8;
/// Buffer for readers that ask for less than a page.
const BUFFER_BYTES: usize = 128 << 10;

/// Yields a file up to a limit that was fixed when it was opened, as far as it still reaches; checks pages where there is a judge.
pub struct FileReader {
    pub file: Arc<File>,
    pub limit: u64,
    pub check: Option<Check>,
    pub cancel: Cancel,
    position: u64,
    buffer: Vec<u8>,
    /// What of the buffer was handed out.
    used: usize,
}

pub struct Check {
    pub judge: Judge,
    /// Block number of the file's first page.
    pub first_block: u32,
    pub findings: Arc<Mutex<Findings>>,
}

impl FileReader {
    pub fn new(file: Arc<File>, limit: u64, check: Option<Check>, cancel: Cancel) -> Self {
        Self { file, limit, check, cancel, position: 0, buffer: Vec::new(), used: 0 }
    }

    /// Fills a buffer of whole pages as far as the file goes; what is less than a page at its end is left out.
    fn read_pages(&self, buffer: &mut [u8], check: &Check) -> io::Result<usize> {
        let page_bytes = check.judge.block_bytes as usize;
        let read = self.fill(buffer, self.position)?;
        let whole = read - read % page_bytes;
        let page_number = |position: u64| u32::try_from(position / u64::from(check.judge.block_bytes)).unwrap_or(u32::MAX);
        for (number, page) in buffer[..whole].chunks_exact_mut(page_bytes).enumerate() {
            let position = self.position + (number * page_bytes) as u64;
            let block = check.first_block.wrapping_add(page_number(position));
            let mut judgement = check.judge.judge(page, block);
            if judgement != Judgement::Good {
                judgement = self.read_again(page, position, block, check)?;
                check.findings.lock().unwrap_or_else(PoisonError::into_inner).add(block, judgement);
            }
        }
        Ok(whole)
    }

    /// A page may have been written at the moment of reading, so it is given time. Leaves what was read last.
    fn read_again(&self, page: &mut [u8], position: u64, block: u32, check: &Check) -> io::Result<Judgement> {
        let patient = check.findings.lock().unwrap_or_else(PoisonError::into_inner).bad_pages < PATIENT_PAGES;
        let mut judgement = check.judge.judge(page, block);
        for attempt in 0..if patient { TRIES } else { 1 } {
            if patient && !self.cancel.is_cancelled() {
                thread::sleep(FIRST_PAUSE * 2u32.pow(attempt));
            }
            let mut again = vec![0; page.len()];
            if self.fill(&mut again, position)? < page.len() {
                // Cut off meanwhile, which replay does too.
                return Ok(Judgement::Good);
            }
            page.copy_from_slice(&again);
            judgement = check.judge.judge(page, block);
            if judgement == Judgement::Good {
                break;
            }
        }
        Ok(judgement)
    }

    /// Reads up to the buffer's size or the file's end, not over the limit.
    fn fill(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        let length = usize::try_from(self.limit.saturating_sub(position)).map_or(buffer.len(), |left| left.min(buffer.len()));
        let mut have = 0;
        while have < length {
            match self.file.read_at(&mut buffer[have..length], position + have as u64) {
                Ok(0) => break,
                Ok(read) => have += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(have)
    }

    fn next_pages(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match &self.check {
            Some(check) => self.read_pages(buffer, check)?,
            None => self.fill(buffer, self.position)?,
        };
        self.position += read as u64;
        Ok(read)
    }
}

impl Read for FileReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.used == self.buffer.len() {
            let page_bytes = self.check.as_ref().map_or(1, |check| check.judge.block_bytes as usize);
            let whole = out.len() - out.len() % page_bytes;
            if whole > 0 {
                return self.next_pages(&mut out[..whole]);
            }
            let mut buffer = std::mem::take(&mut self.buffer);
            buffer.resize(BUFFER_BYTES, 0);
            let read = self.next_pages(&mut buffer)?;
            buffer.truncate(read);
            (self.buffer, self.used) = (buffer, 0);
        }
        let length = out.len().min(self.buffer.len() - self.used);
        out[..length].copy_from_slice(&self.buffer[self.used..self.used + length]);
        self.used += length;
        Ok(length)
    }
}
