//! Transcripts that grow like those of agents: records in one to three writes, bursts, and the rude things agents do.
//!
//! Owns the log of what each source held. The log is ahead of the file, never behind it, so whatever a reader can have seen
//! is in the log.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::home::Home;
use super::judge::Source;
use super::planted::{self, Planted};

/// One session's source and the log of its lives.
#[derive(Debug)]
pub(crate) struct Transcript {
    pub(crate) harness: &'static str,
    /// The session's id in the bucket.
    pub(crate) id: String,
    pub(crate) path: PathBuf,
    /// Content of each life of the source, the present one last.
    pub(crate) lives: Vec<Vec<u8>>,
    pub(crate) gone: bool,
    pub(crate) records: u64,
    own_id: String,
    cwd: String,
    serial: u64,
    rng: fastrand::Rng,
}

impl Transcript {
    /// A session of a harness that has not written anything yet.
    pub(crate) fn new(home: &Home, harness: &'static str, number: u64, seed: u64) -> Transcript {
        let own_id =
            format!("{:08x}-{number:04x}-4000-8000-{:012x}", seed & 0xffff_ffff, number + 1);
        let cwd = format!("/home/dev/works/{harness}-{number}");
        let (id, path) = match harness {
            "claude-code" => (own_id.clone(), home.claude_code(&cwd, &own_id)),
            "codex" => (own_id.clone(), home.codex(&own_id)),
            "openclaw" => (format!("main__{own_id}"), home.openclaw(&own_id)),
            other => panic!("no layout for {other}"),
        };
        let rng = fastrand::Rng::with_seed(seed ^ (number << 32));
        let lives = vec![Vec::new()];
        Transcript {
            harness,
            id,
            path,
            lives,
            gone: false,
            records: 0,
            own_id,
            cwd,
            serial: 0,
            rng,
        }
    }

    /// The redacted model for the judge.
    pub(crate) fn source(&self, planted: &Planted) -> Source {
        Source {
            harness: self.harness,
            id: self.id.clone(),
            generations: self.lives.iter().map(|life| planted.redact(life)).collect(),
            gone: self.gone,
        }
    }

    /// Bytes that the present life holds.
    pub(crate) fn size(&self) -> usize {
        self.lives.last().map_or(0, Vec::len)
    }

    /// Appends a burst of records; `pause` lies between the writes of one record.
    pub(crate) fn burst(&mut self, planted: &Planted, most: u64, pause: Duration) {
        for _ in 0..self.rng.u64(1..=most) {
            let record = self.record(planted);
            self.append(&record, pause);
        }
    }

    /// Appends records in one write each.
    pub(crate) fn grow(&mut self, planted: &Planted, records: u64) {
        for _ in 0..records {
            let record = self.record(planted);
            self.log(&record);
            self.open().write_all(&record).unwrap();
        }
    }

    /// Appends one record that says `text`, which needs no JSON escapes.
    pub(crate) fn grow_by(&mut self, text: &str) {
        self.serial += 1;
        self.records += 1;
        let record = planted::record(self.harness, &self.own_id, &self.cwd, self.serial, text);
        self.log(&record);
        self.open().write_all(&record).unwrap();
    }

    /// The next record; the first one follows the header of its harness. One in eight holds a secret.
    fn record(&mut self, planted: &Planted) -> Vec<u8> {
        let mut bytes = match self.size() {
            0 => planted::header(self.harness, &self.own_id, &self.cwd),
            _ => Vec::new(),
        };
        self.serial += 1;
        self.records += 1;
        let filler = "lorem ipsum ".repeat(self.rng.usize(0..40));
        let secret = match self.rng.u8(..) % 8 {
            0 if !planted.secrets.is_empty() => {
                &planted.secrets[self.rng.usize(..planted.secrets.len())].whole
            }
            _ => "none",
        };
        let text =
            format!("record {} of {} {filler} secret {secret} end", self.serial, self.own_id);
        bytes.extend(planted::record(self.harness, &self.own_id, &self.cwd, self.serial, &text));
        bytes
    }

    /// Appends bytes in one to three writes.
    fn append(&mut self, bytes: &[u8], pause: Duration) {
        self.log(bytes);
        let mut file = self.open();
        let mut rest = bytes;
        for _ in 0..self.rng.usize(0..3) {
            let (now, later) = rest.split_at(self.rng.usize(0..=rest.len()));
            file.write_all(now).unwrap();
            super::pace(&mut self.rng, pause);
            rest = later;
        }
        file.write_all(rest).unwrap();
    }

    fn log(&mut self, bytes: &[u8]) {
        self.lives.last_mut().unwrap().extend_from_slice(bytes);
    }

    fn open(&self) -> File {
        fs::create_dir_all(self.path.parent().unwrap()).unwrap();
        File::options().append(true).create(true).open(&self.path).unwrap()
    }

    /// Cuts the file in place to about half, at a record's end: the next life begins with what is left.
    pub(crate) fn truncate(&mut self) {
        let life = self.lives.last().unwrap();
        let half = life[..life.len() / 2].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let left = life[..half].to_vec();
        self.lives.push(left);
        File::options().write(true).open(&self.path).unwrap().set_len(half as u64).unwrap();
    }

    /// Puts another file in its place by rename, as Claude Code's local collection does.
    pub(crate) fn replace(&mut self, planted: &Planted) {
        self.lives.push(Vec::new());
        for _ in 0..3 {
            let record = self.record(planted);
            self.log(&record);
        }
        let temporary = self.path.with_extension("jsonl.compact.tmp.0a1b2c3d");
        fs::write(&temporary, self.lives.last().unwrap()).unwrap();
        fs::rename(&temporary, &self.path).unwrap();
    }

    /// Moves the file; the content stays.
    pub(crate) fn move_to(&mut self, path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::rename(&self.path, path).unwrap();
        self.path = path.to_path_buf();
    }

    /// Removes the file.
    pub(crate) fn delete(&mut self) {
        self.gone = true;
        fs::remove_file(&self.path).unwrap();
    }
}
