"""The stage of tests/interop: a moto server, homes in which both tools work, and what can be seen of the bucket.

Owns processes, paths and comparisons of bytes; refuses to know what is right in which case (run).
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from transcripts import samples

REPO = Path(__file__).resolve().parents[2]
SKIP = 77

# How long a program may take; the slowest is a cold start of the peer on a busy machine.
RUN_LIMIT = 120
# How long anything that has to come true may take.
WAIT_LIMIT = 60


def skip(why):
    print(f"SKIPPED {why}")
    sys.exit(SKIP)


class Moto:
    """The S3 stand-in, and what is in it."""

    BUCKET = "tracecraft"

    def __init__(self, peer, log):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        command = [f"{peer}/bin/moto_server", "-H", "127.0.0.1", "-p", str(self.port)]
        self.log = open(log, "wb")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        import boto3
        from botocore.config import Config

        path_style = Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1})
        self.s3 = boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
            config=path_style,
        )
        wait_for("moto answers", self.answers)
        self.s3.create_bucket(Bucket=self.BUCKET)

    def answers(self):
        try:
            self.s3.list_buckets()
            return True
        except Exception:  # Not there yet, in whichever way.
            return False

    def keys(self, prefix):
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.BUCKET, Prefix=prefix)
        return [thing["Key"] for page in pages for thing in page.get("Contents", [])]

    def get(self, key):
        return self.s3.get_object(Bucket=self.BUCKET, Key=key)["Body"].read()

    def put(self, key, body):
        self.s3.put_object(Bucket=self.BUCKET, Key=key, Body=body)

    def delete(self, key):
        self.s3.delete_object(Bucket=self.BUCKET, Key=key)

    def end(self):
        self.process.terminate()
        self.process.wait()
        self.log.close()


class Scene:
    """A home with agents' sessions, a project in the bucket, and both tools at work in it."""

    CWD = "/home/you/app"

    def __init__(self, stage, name):
        self.stage, self.name = stage, name
        self.home = stage.scratch / name
        self.project = name
        self.work = self.home / "work"
        self.work.mkdir(parents=True)
        self.differences = []
        self.notes = []
        self.daemon = None
        self.peer("init", "--project", self.project, "--agent", "a1", "--endpoint", stage.moto.url, "--bucket", Moto.BUCKET)

    # -- files

    def path(self, harness, stem):
        if harness == "claude-code":
            return self.home / ".claude/projects" / self.CWD.replace("/", "-") / f"{stem}.jsonl"
        if harness == "codex":
            return self.home / f".codex/sessions/2026/01/02/rollout-2026-01-02T03-04-05-{stem}.jsonl"
        return self.home / f".openclaw/agents/main/sessions/{stem}.jsonl"

    def session_id(self, harness, stem):
        return f"main__{stem}" if harness == "openclaw" else stem

    def write(self, harness, stem, content):
        """Lets the file hold this much, as if it had been quiet for an hour: grown in place, as agents do."""
        path = self.path(harness, stem)
        path.parent.mkdir(parents=True, exist_ok=True)
        had = path.stat().st_size if path.exists() else 0
        with open(path, "ab") as file:
            file.write(content[had:])
        then = time.time() - 3600
        os.utime(path, (then, then))

    # -- programs

    def environment(self):
        return {
            "HOME": str(self.home),
            "PATH": os.environ["PATH"],
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.stage.moto.url,
            "LC_ALL": "C.UTF-8",
        }

    def run(self, command, check=True):
        done = subprocess.run(
            [str(word) for word in command],
            env=self.environment(),
            cwd=self.work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=RUN_LIMIT,
        )
        if check and done.returncode != 0:
            said = (done.stdout[-2000:] + done.stderr[-4000:]).decode(errors="replace")
            raise Broken(f"{Path(command[0]).name} {command[1]} … exited with {done.returncode}: {said}")
        return done

    def peer(self, *words, check=True):
        return self.run([self.stage.peer / "bin/tracecraft", *words], check).stdout

    def mirror(self, harness, stem, *more):
        words = ["session", "mirror", "--harness", harness, "--session-id", self.session_id(harness, stem)]
        return self.peer(*words, "--cwd", self.CWD, *more)

    def store(self):
        return f"s3://{Moto.BUCKET}/{self.project}"

    def once(self):
        return self.run([self.stage.bin / "tracecraftd", "--once", "--store", self.store()])

    def forget_state(self):
        shutil.rmtree(self.home / ".local/state/tracecraft")

    def reference(self):
        """What we would have stored of every source alone, by id: the redacted sources."""
        into = self.home / "reference"
        command = [self.stage.bin / "tracecraftd", "--once", "--store", f"file://{into}", "--state-dir", self.home / "reference-state"]
        self.run(command)
        by_id = {}
        for meta in into.glob("sessions/*/*/meta.json"):
            parts = sorted(meta.parent.glob("part-*.jsonl"))
            name = meta.parent.name
            if meta.parent.parent.name == "codex":
                name = name.split("__")[-1]  # Of a sub-agent its own id.
            by_id[f"{meta.parent.parent.name}/{name}"] = b"".join(part.read_bytes() for part in parts)
        shutil.rmtree(into)
        shutil.rmtree(self.home / "reference-state")
        return by_id

    def start(self, interval="200ms"):
        log = open(self.home / "daemon.log", "ab")
        command = [self.stage.bin / "tracecraftd", "--store", self.store(), "--interval", interval]
        self.daemon = subprocess.Popen(
            [str(word) for word in command], env=self.environment(), cwd=self.work, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        wait_for("the daemon answers", lambda: self.ctl("status", check=False).returncode == 0)

    def stop(self):
        if self.daemon:
            self.daemon.terminate()
            if self.daemon.wait(timeout=RUN_LIMIT) != 0:
                self.differ(f"the daemon exited with {self.daemon.returncode}")
            self.daemon = None

    def ctl(self, *words, check=True):
        return self.run([self.stage.bin / "tracecraftctl", *words], check)

    def replay(self, harness, stem, generation=1):
        """Our own replay, through a daemon."""
        more = ["--generation", str(generation)] if generation > 1 else []
        return self.ctl("show", f"{harness}/{self.session_id(harness, stem)}", "--raw", *more).stdout

    # -- what is stored

    def prefix(self, harness, stem, generation=1):
        suffix = f"~{generation}" if generation > 1 else ""
        return f"{self.project}/sessions/{harness}/{self.session_id(harness, stem)}{suffix}/"

    def parts(self, harness, stem, generation=1):
        keys = self.stage.moto.keys(self.prefix(harness, stem, generation))
        return [key for key in keys if re.search(r"part-\d{5}-[0-9a-f]{8}\.jsonl$", key)]

    def listing(self, harness, stem, generation=1):
        """What a reader sees that only lists."""
        return b"".join(self.stage.moto.get(key) for key in self.parts(harness, stem, generation))

    def meta(self, harness, stem, generation=1):
        return json.loads(self.stage.moto.get(self.prefix(harness, stem, generation) + "meta.json"))

    def shown(self, harness, stem):
        """The manifest and the lines that the peer's `show` prints."""
        text = self.peer("session", "show", self.session_id(harness, stem), "--tail", "1000000").decode()
        meta, tail = text.split("\n--- tail ---\n", 1)
        return json.loads(meta), tail

    # -- judging

    def differ(self, what):
        self.differences.append(what)

    def same(self, what, found, expected):
        if found == expected:
            return
        if isinstance(found, bytes) and isinstance(expected, bytes):
            at = next((at for at, (a, b) in enumerate(zip(found, expected)) if a != b), min(len(found), len(expected)))
            around = f"{found[max(0, at - 40) : at + 40]!r} instead of {expected[max(0, at - 40) : at + 40]!r}"
            self.differ(f"{what}: {len(found)} bytes instead of {len(expected)}, first at {at}: {around}")
        else:
            self.differ(f"{what}: {found!r} instead of {expected!r}")

    def same_shown(self, what, harness, stem, stored):
        """Whether the peer's `show` prints the stored bytes. It splits at every kind of line end, as Python does."""
        _, tail = self.shown(harness, stem)
        lines = [line.decode(errors="replace") for line in stored.splitlines()]
        self.same(f"{what}: its show --tail", tail.encode(), "".join(f"{line}\n" for line in lines).encode())

    def no_second_generation(self, harness, stem):
        second = self.stage.moto.keys(self.prefix(harness, stem, 2))
        if second:
            reason = self.meta(harness, stem, 2).get("reason")
            self.differ(f"{harness} {stem}: a second generation began ({reason})")


class Broken(Exception):
    """A program failed that must not."""


def each(sessions, work):
    """Does something for each session, some at a time: the peer spends most of its time starting."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda session: work(*session), sessions))


def wait_for(what, holds, limit=WAIT_LIMIT):
    until = time.monotonic() + limit
    while not holds():
        if time.monotonic() > until:
            raise Broken(f"{what}: not within {limit} s")
        time.sleep(0.05)


class Stage:
    """What all cases share."""

    def __init__(self, peer, scratch):
        self.peer, self.scratch = peer, scratch
        self.bin = binaries()
        self.samples = samples()
        self.moto = Moto(peer, scratch / "moto.log")


def binaries():
    named = os.environ.get("TRACECRAFT_BIN")
    places = [Path(named)] if named else [REPO / "target/release", REPO / "target/debug"]
    for place in places:
        if (place / "tracecraftd").is_file():
            return place.resolve()
    skip(f"no tracecraftd in {' or '.join(map(str, places))}")
