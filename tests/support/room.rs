//! A small file system of its own for one directory: one that can really be full.
//!
//! A tmpfs in a mount namespace that a holder process keeps alive; programs enter it by `nsenter`, the test looks in by the
//! holder's `/proc` directory. Needs no rights but user namespaces; where these are not allowed, it says so.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::home::Home;

/// What is written at a time to fill it, down to the last block.
const FILLER: [usize; 2] = [64 << 10, 1 << 10];

/// The file system and whoever keeps it.
#[derive(Debug)]
pub(crate) struct Room {
    holder: Child,
    dir: PathBuf,
}

impl Room {
    /// A file system of so many bytes at a directory, which is made if it is not there.
    pub(crate) fn at(home: &Home, dir: &Path, bytes: u64) -> Result<Room, String> {
        fs::create_dir_all(dir).unwrap();
        let mount = format!(
            "mount -t tmpfs -o size={bytes},mode=0700 tmpfs \"$0\" && echo there && exec cat"
        );
        let mut command = home.command("unshare");
        command.args(["-Urm", "sh", "-c", &mount]).arg(dir);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut holder = command.spawn().map_err(|why| format!("unshare cannot be run: {why}"))?;
        let mut said = [0; 6];
        let read = holder.stdout.as_mut().expect("it is piped").read_exact(&mut said);
        // Dropped in either case: what could not be mounted is over.
        let room = Room { holder, dir: dir.to_owned() };
        match read {
            Ok(()) => Ok(room),
            Err(_) => Err("a file system of one's own is not allowed here".to_owned()),
        }
    }

    /// A command that sees it.
    pub(crate) fn command(&self, home: &Home, command: &Command) -> Command {
        let mut inside = home.command("nsenter");
        inside.args(["-t", &self.holder.id().to_string(), "-U", "-m", "--preserve-credentials"]);
        inside.arg(command.get_program()).args(command.get_args());
        inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        inside
    }

    /// Where the test sees it.
    pub(crate) fn path(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(self.dir.strip_prefix("/").expect("the path is absolute"))
    }

    /// Takes all room but for `left` bytes.
    pub(crate) fn fill(&self, left: u64) {
        let mut file = File::options().append(true).create(true).open(self.filler()).unwrap();
        for size in FILLER {
            while file.write_all(&vec![b'x'; size]).is_ok() {}
        }
        let length = file.metadata().unwrap().len();
        file.set_len(length.saturating_sub(left)).unwrap();
    }

    /// Gives the room back.
    pub(crate) fn make_room(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
