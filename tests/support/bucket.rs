//! Real S3 servers that a test can use: s3s-fs, moto and Garage as child processes, or whatever the environment names.
//!
//! Owns the processes, their directories and their keys; knows nothing of what is stored. A server ends with its test.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hyper::Method;
use tempfile::TempDir;

use super::http::free_port;
use super::s3::Client;
use super::try_wait_for;

/// How long a server may take until it answers: moto is an interpreter that reads many files first.
const START_MAX: Duration = Duration::from_secs(60);

/// How often another port is tried, if somebody takes the one that was free a moment ago.
const PORTS_TRIED: u32 = 3;

/// Keys of the servers that are started here. They open nothing but a scratch directory.
const ACCESS_KEY: &str = "GK0123456789abcdef01234567";
const SECRET_KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A small server that keeps objects as files; checks signatures.
    S3sFs,
    /// The Python stand-in for AWS, in memory; checks no signatures.
    Moto,
    /// A real server for small clusters; checks signatures and regions.
    Garage,
    /// `TRACECRAFT_TEST_S3_ENDPOINT` and `TRACECRAFT_TEST_S3_BUCKET`, with the usual AWS variables.
    Environment,
}

impl Kind {
    /// The one that a person calls so.
    pub(crate) fn named(name: &str) -> Option<Kind> {
        match name {
            "s3s-fs" => Some(Kind::S3sFs),
            "moto" => Some(Kind::Moto),
            "garage" => Some(Kind::Garage),
            "environment" => Some(Kind::Environment),
            _ => None,
        }
    }

    /// The region that the server believes to be in.
    fn region(self) -> &'static str {
        if self == Kind::Garage { "garage" } else { "us-east-1" }
    }

    /// Where its program is: where a variable says, what `.ci/run` installed, or the search path.
    fn program(self) -> Result<PathBuf, String> {
        let (name, variable) = match self {
            Kind::S3sFs => ("s3s-fs", "TRACECRAFT_S3S_FS"),
            Kind::Moto => ("moto_server", "TRACECRAFT_MOTO"),
            Kind::Garage => ("garage", "TRACECRAFT_GARAGE"),
            Kind::Environment => return Err("is not started here".to_owned()),
        };
        if let Some(path) = env::var_os(variable) {
            return Ok(PathBuf::from(path));
        }
        let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools");
        let mut places = vec![tools.join("bin"), tools.join("python/bin")];
        places.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
        let found = places.into_iter().map(|place| place.join(name)).find(|path| path.is_file());
        found.ok_or_else(|| format!("there is no {name}; {variable} can name it"))
    }
}

/// A server with one empty bucket. Dropping it ends the server.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) client: Client,
    /// Held to be ended.
    _process: Option<Process>,
}

impl Server {
    /// Starts a server and makes its bucket; says why there is none.
    pub(crate) fn start(kind: Kind) -> Result<Server, String> {
        if kind == Kind::Environment {
            return Server::of_environment();
        }
        let program = kind.program()?;
        let mut why = String::new();
        for _ in 0..PORTS_TRIED {
            match Server::start_on(kind, &program, free_port()) {
                Ok(server) => return Ok(server),
                Err(complaint) => why = complaint,
            }
        }
        // A server that is there and does not work is no reason to skip a test.
        panic!("{kind:?} does not come up: {why}");
    }

    /// As [`Server::start`]; where there is none, says in a line that `test` is skipped.
    pub(crate) fn start_or_skip(kind: Kind, test: &str) -> Option<Server> {
        match Server::start(kind) {
            Ok(server) => Some(server),
            Err(why) => {
                super::skipped(test, &format!("{kind:?}: {why}"));
                None
            }
        }
    }

    fn start_on(kind: Kind, program: &Path, port: u16) -> Result<Server, String> {
        let client = Client {
            authority: format!("127.0.0.1:{port}"),
            bucket: "sessions-of-tests".to_owned(),
            region: kind.region().to_owned(),
            access_key: ACCESS_KEY.to_owned(),
            secret_key: SECRET_KEY.to_owned(),
        };
        let dir = tempfile::Builder::new().prefix("tcr-s3-").tempdir().unwrap();
        let mut command = command(kind, program, port, dir.path(), &client.bucket);
        let mut process = Process::spawn(&mut command, dir)?;
        let up = try_wait_for(START_MAX, || {
            if let Some(status) = process.child.try_wait().unwrap() {
                return Some(Err(format!("ended with {status}: {}", process.said())));
            }
            // Garage has made its bucket by then and lets nobody make others.
            let made = kind == Kind::Garage || client.make_bucket().is_ok();
            let listed = made && client.list("").is_ok();
            listed.then_some(Ok(()))
        });
        up.unwrap_or_else(|| Err(format!("no answer: {}", process.said())))?;
        Ok(Server { client, _process: Some(process) })
    }

    fn of_environment() -> Result<Server, String> {
        let variable = |name: &str| env::var(name).map_err(|_| format!("{name} is not set"));
        let endpoint = variable("TRACECRAFT_TEST_S3_ENDPOINT")?;
        let Some(authority) = endpoint.strip_prefix("http://") else {
            return Err("these tests speak plain http only".to_owned());
        };
        let client = Client {
            authority: authority.trim_end_matches('/').to_owned(),
            bucket: variable("TRACECRAFT_TEST_S3_BUCKET")?,
            region: variable("AWS_REGION").unwrap_or_else(|_| "us-east-1".to_owned()),
            access_key: variable("AWS_ACCESS_KEY_ID")?,
            secret_key: variable("AWS_SECRET_ACCESS_KEY")?,
        };
        client.list("").map_err(|why| format!("the bucket cannot be listed: {why}"))?;
        Ok(Server { client, _process: None })
    }

    /// Whether the server looks at signatures at all.
    pub(crate) fn checks_signatures(&self) -> bool {
        let stranger = Client { secret_key: "wrong".repeat(8), ..self.client.clone() };
        let answer = stranger.send(Method::GET, "", &[("list-type", "2")], bytes::Bytes::new());
        answer.is_ok_and(|answer| answer.status() == hyper::StatusCode::FORBIDDEN)
    }
}

/// A server's process and its directory. Dropping it kills the process.
#[derive(Debug)]
struct Process {
    child: Child,
    dir: TempDir,
}

impl Process {
    fn spawn(command: &mut Command, dir: TempDir) -> Result<Process, String> {
        let log = File::create(dir.path().join("said.log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().map_err(|why| format!("cannot be started: {why}"))?;
        Ok(Process { child, dir })
    }

    /// The end of what it has written to its streams.
    fn said(&self) -> String {
        let said = fs::read(self.dir.path().join("said.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&said).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Process {
    /// `TRACECRAFT_KEEP` set: what the server of a failed test stored stays for a look.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() && env::var_os("TRACECRAFT_KEEP").is_some() {
            self.dir.disable_cleanup(true);
            println!("kept: {}", self.dir.path().display());
        }
    }
}

fn command(kind: Kind, program: &Path, port: u16, dir: &Path, bucket: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("HOME", dir).env("PATH", env::var_os("PATH").unwrap_or_default());
    let port = port.to_string();
    match kind {
        Kind::S3sFs => {
            let objects = dir.join("objects");
            fs::create_dir(&objects).unwrap();
            command.args(["--host", "127.0.0.1", "--port", &port]);
            command.args(["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY]).arg(objects);
        }
        Kind::Moto => {
            command.args(["-H", "127.0.0.1", "-p", &port]);
        }
        Kind::Garage => {
            let file = dir.join("garage.toml");
            fs::write(&file, garage_configuration(dir, &port)).unwrap();
            command.arg("-c").arg(file).args(["server", "--single-node", "--default-bucket"]);
            command.env("GARAGE_DEFAULT_ACCESS_KEY", ACCESS_KEY);
            command.env("GARAGE_DEFAULT_SECRET_KEY", SECRET_KEY);
            command.env("GARAGE_DEFAULT_BUCKET", bucket);
        }
        Kind::Environment => unreachable!("nothing is started for it"),
    }
    command
}

fn garage_configuration(dir: &Path, port: &str) -> String {
    let (dir, rpc) = (dir.display(), free_port());
    format!(
        "metadata_dir = \"{dir}/meta\"\ndata_dir = \"{dir}/data\"\ndb_engine = \"sqlite\"\nreplication_factor = 1\n\
         rpc_bind_addr = \"127.0.0.1:{rpc}\"\nrpc_public_addr = \"127.0.0.1:{rpc}\"\nrpc_secret = \"{SECRET_KEY}\"\n\
         [s3_api]\ns3_region = \"garage\"\napi_bind_addr = \"127.0.0.1:{port}\"\nroot_domain = \".s3.invalid\"\n"
    )
}
