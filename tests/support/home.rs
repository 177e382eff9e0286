//! A scratch home: where the agents keep their transcripts, where the program keeps its own files, and commands that run in it.
//!
//! Owns names and places as the documents give them; knows nothing of what is in a bucket. The real home is never touched:
//! every command starts from an empty environment with only `PATH` and this `HOME`.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::bucket::Server;
use super::objects::Objects;
use super::proxy::Proxy;

/// How long a program may take that has to end by itself: the longest is `--once` over a line of 100 MB in a debug build.
const RUN_MAX: Duration = Duration::from_secs(90);

/// A transcript that was laid out, and what its session must hold.
#[derive(Debug, Clone)]
pub(crate) struct Laid {
    pub(crate) harness: &'static str,
    /// The id where the documents leave no doubt about it.
    pub(crate) id: Option<String>,
    pub(crate) path: PathBuf,
    /// What an agent would read there (decompressed).
    pub(crate) content: Vec<u8>,
}

/// A home directory of its own, removed when dropped.
#[derive(Debug)]
pub(crate) struct Home {
    /// `None`: somebody else's to remove.
    dir: Option<TempDir>,
    path: PathBuf,
    remote: Option<Remote>,
    /// `XDG_RUNTIME_DIR` of its programs.
    runtime: Option<PathBuf>,
}

/// The bucket that a home's programs use in place of the local one.
#[derive(Debug, Clone)]
pub(crate) struct Remote {
    /// The server, which lives as long as somebody uses it. Tests read it around every proxy.
    pub(crate) server: Arc<Server>,
    pub(crate) project: String,
    /// What the programs are told: host and port of the server, or of a proxy before it.
    pub(crate) authority: String,
}

impl Remote {
    /// A project of its own on a server, asked directly.
    pub(crate) fn new(server: &Arc<Server>) -> Remote {
        let project = format!("project-{:08x}", fastrand::u32(..));
        let authority = server.client.authority.clone();
        Remote { server: Arc::clone(server), project, authority }
    }

    /// The same, asked through a proxy.
    pub(crate) fn through(mut self, proxy: &Proxy) -> Remote {
        self.authority = proxy.authority();
        self
    }

    /// The variables that tell a program about it.
    fn variables(&self) -> [(&'static str, String); 5] {
        let client = &self.server.client;
        [
            ("TRACECRAFT_STORE", format!("s3://{}/{}", client.bucket, self.project)),
            ("AWS_ENDPOINT_URL", format!("http://{}", self.authority)),
            ("AWS_REGION", client.region.clone()),
            ("AWS_ACCESS_KEY_ID", client.access_key.clone()),
            ("AWS_SECRET_ACCESS_KEY", client.secret_key.clone()),
        ]
    }
}

impl Home {
    pub(crate) fn new() -> Home {
        let dir = tempfile::Builder::new().prefix("tcr").tempdir().unwrap();
        // The program reports canonical paths, and on some systems the temporary directory is behind a link.
        let path = dir.path().canonicalize().unwrap();
        Home { dir: Some(dir), path, remote: None, runtime: None }
    }

    /// A home that is there already, and whose programs have a directory for their sockets.
    pub(crate) fn at(path: PathBuf, runtime: PathBuf) -> Home {
        Home { dir: None, path, remote: None, runtime: Some(runtime) }
    }

    /// The same home with programs that use a bucket.
    pub(crate) fn and(mut self, remote: Remote) -> Home {
        self.remote = Some(remote);
        self
    }

    /// A home whose programs use a bucket.
    pub(crate) fn with(remote: Remote) -> Home {
        let mut home = Home::new();
        home.remote = Some(remote);
        home
    }

    /// Where its objects are.
    pub(crate) fn objects(&self) -> Objects {
        match &self.remote {
            None => Objects::Directory(self.bucket()),
            Some(Remote { server, project, .. }) => {
                Objects::Bucket { client: server.client.clone(), project: project.clone() }
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.path.join(".local/state/tracecraft")
    }

    pub(crate) fn bucket(&self) -> PathBuf {
        self.path.join(".local/share/tracecraft/bucket")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.state_dir().join("run/tracecraftd.sock")
    }

    /// The directories that are sacred: nothing below them may be changed by the program.
    pub(crate) fn agent_roots(&self) -> Vec<PathBuf> {
        let names = [".claude", ".codex", ".openclaw", ".hermes"];
        names.iter().map(|name| self.path.join(name)).collect()
    }

    pub(crate) fn tracecraftd(&self) -> Command {
        self.command(env!("CARGO_BIN_EXE_tracecraftd"))
    }

    pub(crate) fn tracecraftctl(&self) -> Command {
        self.command(env!("CARGO_BIN_EXE_tracecraftctl"))
    }

    /// Any program in this home, with an environment of `PATH` and `HOME`, and of its bucket if it has one.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("HOME", &self.path).current_dir(&self.path);
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(self.runtime.iter().map(|dir| ("XDG_RUNTIME_DIR", dir)));
        command.envs(self.remote.iter().flat_map(Remote::variables));
        command
    }

    /// Runs `tracecraftd --once` with more arguments.
    pub(crate) fn once_with(&self, arguments: &[&str]) -> Output {
        run(self.tracecraftd().arg("--once").args(arguments))
    }

    /// Runs `tracecraftd --once`, which must succeed.
    pub(crate) fn once(&self) -> Output {
        let output = self.once_with(&[]);
        assert!(output.status.success(), "--once failed: {}", said(&output));
        output
    }

    /// Where Claude Code keeps a session that was started in `cwd`.
    pub(crate) fn claude_code(&self, cwd: &str, stem: &str) -> PathBuf {
        let key: String =
            cwd.encode_utf16().map(|unit| ascii_alphanumeric(unit).unwrap_or('-')).collect();
        self.path.join(".claude/projects").join(key).join(format!("{stem}.jsonl"))
    }

    /// Where Codex keeps a thread of a fixed day.
    pub(crate) fn codex(&self, id: &str) -> PathBuf {
        self.path
            .join(".codex/sessions/2026/01/02")
            .join(format!("rollout-2026-01-02T03-04-05-{id}.jsonl"))
    }

    /// Where OpenClaw kept a session of its agent `main`.
    pub(crate) fn openclaw(&self, stem: &str) -> PathBuf {
        self.path.join(".openclaw/agents/main/sessions").join(format!("{stem}.jsonl"))
    }

    /// Writes a transcript that looks as if it had been quiet for an hour.
    pub(crate) fn place(&self, path: &Path, content: &[u8]) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        age(path);
    }
}

/// Runs a program that has to end by itself. One that does not is killed, and the test fails with what it said.
pub(crate) fn run(command: &mut Command) -> Output {
    run_within(command, RUN_MAX)
}

/// The same for work that takes longer.
pub(crate) fn run_within(command: &mut Command, limit: Duration) -> Output {
    try_run_within(command, limit).unwrap_or_else(|why| panic!("{command:?}: {why}"))
}

/// Like [`run`]; fails when the program cannot be started at all.
pub(crate) fn try_run(command: &mut Command) -> std::io::Result<Output> {
    try_run_within(command, RUN_MAX)
}

fn try_run_within(command: &mut Command, limit: Duration) -> std::io::Result<Output> {
    let (out, err) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(err.try_clone()?);
    let mut child = command.spawn()?;
    let ended = super::try_wait_for(limit, || child.try_wait().unwrap());
    if ended.is_none() {
        child.kill()?;
    }
    let status = child.wait()?;
    let output = Output { status, stdout: content_of(out)?, stderr: content_of(err)? };
    assert!(ended.is_some(), "{command:?} did not end within {limit:?}: {}", said(&output));
    Ok(output)
}

fn content_of(mut file: fs::File) -> std::io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut content)?;
    Ok(content)
}

/// Makes a file look as if it had last been written an hour ago, so that nothing waits for its writer.
pub(crate) fn age(path: &Path) {
    let then = SystemTime::now() - Duration::from_secs(3600);
    fs::File::options().append(true).open(path).unwrap().set_modified(then).unwrap();
}

/// Exit status and both streams of a finished program, for failure texts.
pub(crate) fn said(output: &Output) -> String {
    format!(
        "{}\n--- stdout\n{}\n--- stderr\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

impl Drop for Home {
    /// `TRACECRAFT_KEEP` set: the home of a failed test stays for a look.
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("TRACECRAFT_KEEP").is_some() {
            self.dir.iter_mut().for_each(|dir| dir.disable_cleanup(true));
            println!("kept: {}", self.path.display());
        }
    }
}

/// All regular files below a directory with their content, sorted by path; links are not followed.
pub(crate) fn files_below(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    files_below_where(dir, |_| true)
}

/// As [`files_below`]; files and directories that are not wanted are not read.
pub(crate) fn files_below_where(
    dir: &Path,
    wanted: impl Fn(&Path) -> bool,
) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            if !wanted(&entry.path()) {
                continue;
            }
            if kind.is_dir() {
                dirs.push(entry.path());
            } else if kind.is_file()
                && let Ok(content) = fs::read(entry.path())
            {
                // A file may be gone between listing and reading while a daemon runs.
                found.push((entry.path(), content));
            }
        }
    }
    found.sort();
    found
}

fn ascii_alphanumeric(unit: u16) -> Option<char> {
    char::from_u32(u32::from(unit)).filter(char::is_ascii_alphanumeric)
}

/// The sample transcripts, laid out as the agents would, or `None` when `TRACECRAFT_SAMPLES` is not set.
pub(crate) fn lay_out_samples(home: &Home) -> Option<Vec<Laid>> {
    let samples = PathBuf::from(std::env::var_os("TRACECRAFT_SAMPLES")?);
    let mut laid = Vec::new();
    lay_out_claude_code(home, &samples, &mut laid);
    lay_out_codex(home, &samples, &mut laid);
    lay_out_openclaw(home, &samples, &mut laid);
    assert!(laid.len() > 50, "only {} transcripts found in {}", laid.len(), samples.display());
    Some(laid)
}

fn lay_out_claude_code(home: &Home, samples: &Path, laid: &mut Vec<Laid>) {
    let mut stems = std::collections::BTreeSet::new();
    for (from, content) in jsonl(&samples.join("claude-code")) {
        let folder = from.strip_prefix(samples).unwrap().components().nth(1).unwrap();
        let cwd = format!("/home/dev/works/{}", folder.as_os_str().to_str().unwrap());
        let mut stem = from.file_stem().unwrap().to_str().unwrap().to_owned();
        while !stems.insert(stem.clone()) {
            stem.push_str("-again");
        }
        let path = home.claude_code(&cwd, &stem);
        laid.push(Laid { harness: "claude-code", id: Some(stem), path, content });
    }
    let parent = "0d5f2f4e-6f0c-4c11-9d58-2f0f2a3c7b10";
    let agent = laid[0].content.clone();
    let path = home.claude_code("/home/dev/works/parent", parent);
    let sub_agent = path.with_extension("").join("subagents/agent-a1b2c3d4.jsonl");
    laid.push(Laid {
        harness: "claude-code",
        id: Some(parent.into()),
        path,
        content: agent.clone(),
    });
    laid.push(Laid { harness: "claude-code", id: None, path: sub_agent, content: agent });
    laid.iter().for_each(|one| home.place(&one.path, &one.content));
}

fn lay_out_codex(home: &Home, samples: &Path, laid: &mut Vec<Laid>) {
    for (number, (_, content)) in jsonl(&samples.join("codex")).into_iter().enumerate() {
        let id = format!("01a20000-0000-7000-8000-{number:012x}");
        let path = home.codex(&id);
        home.place(&path, &content);
        laid.push(Laid { harness: "codex", id: Some(id), path, content });
    }
    let real = samples.join("real/codex");
    for (from, bytes) in files_below(&real) {
        let path = home.path().join(".codex").join(from.strip_prefix(&real).unwrap());
        home.place(&path, &bytes);
        let name = path.file_name().unwrap().to_str().unwrap();
        let Some(rollout) = name.strip_prefix("rollout-") else { continue };
        let compressed = name.ends_with(".zst");
        let content = if compressed { zstd::decode_all(&bytes[..]).unwrap() } else { bytes };
        let id = rollout[20..].split('.').next().unwrap().to_owned();
        // The documents do not say which id a file has that a revert began.
        let id = Some(id).filter(|id| !id.contains('_'));
        laid.push(Laid { harness: "codex", id, path, content });
    }
}

fn lay_out_openclaw(home: &Home, samples: &Path, laid: &mut Vec<Laid>) {
    let mut sources = jsonl(&samples.join("pi"));
    sources.extend(jsonl(&samples.join("real/pi")));
    sources.extend(jsonl(&samples.join("real/openclaw")));
    for (from, content) in sources {
        let stem = from.file_stem().unwrap().to_str().unwrap();
        let path = home.openclaw(stem);
        home.place(&path, &content);
        laid.push(Laid { harness: "openclaw", id: Some(format!("main__{stem}")), path, content });
    }
}

/// Files that lie where transcripts lie and are none; none of them may be mirrored.
pub(crate) fn lay_out_decoys(home: &Home) -> Vec<PathBuf> {
    let claude = home.claude_code("/home/dev/works/decoys", "6b1c7a52-0000-4000-8000-00000000dec0");
    let openclaw = home.openclaw("6b1c7a52-0000-4000-8000-00000000dec0");
    let decoys = vec![
        home.path().join(".claude/history.jsonl"),
        home.path().join(".codex/history.jsonl"),
        home.path().join(".codex/session_index.jsonl"),
        claude.with_extension("").join("resume-head.jsonl"),
        claude.with_extension("jsonl.compact.tmp.0a1b2c3d"),
        openclaw.with_extension("trajectory.jsonl"),
        openclaw.with_extension("checkpoint.0d5f2f4e-6f0c-4c11-9d58-2f0f2a3c7b10.jsonl"),
    ];
    for path in &decoys {
        home.place(path, b"{\"decoy\":\"not a transcript\"}\n");
    }
    decoys
}

fn jsonl(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = files_below(dir);
    files.retain(|(path, _)| path.extension().is_some_and(|extension| extension == "jsonl"));
    files
}
