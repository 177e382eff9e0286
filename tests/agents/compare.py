#!/usr/bin/env python3
"""Judges one run of `tests/agents/run`: does the mirror hold what the real agents wrote, and only that?

Owns the comparison: which files are transcripts (by the agents' own rules, written down here a second time so that a
mistake in the daemon's rules cannot hide itself), what each must look like in the store, and where a planted secret must
not be. Knows nothing of how agents are installed or driven. Standard library only.

    compare.py snapshot DIR                     what is below DIR, as JSON on standard output
    compare.py caught-up ... AGENT              wait until the daemon has stored what AGENT has written so far (no flush)
    compare.py check ...                        flush, then compare every transcript with `list`, `show` and the bucket
    compare.py aftermath ...                    after the daemon's end: bucket again, secrets, the agents' directories
    compare.py --self-test                      shows that the comparison passes on a good mirror and fails on bad ones

Exit code 0: all holds. 1: it does not, with one line for each complaint.
"""
import argparse, contextlib, hashlib, json, os, re, stat, subprocess, sys, time
from pathlib import Path

MARK = b"[REDACTED:aws_access_key]"
PATTERN = "aws_access_key"

# A flush of a few hundred kilobytes to a local directory; a minute means that something hangs.
CTL_LIMIT_SECONDS = 60
# How much of a session's `show` is printed for a human to judge.
SHOWN_LINES = 24

# Calls that change a file or directory, or lock it, in a trace of the daemon. `openat` counts only with a writing flag.
WRITING_FLAGS = re.compile(r"O_(WRONLY|RDWR|CREAT|TRUNC|APPEND)")
CHANGING_CALLS = re.compile(r"\b(creat|rename|renameat|renameat2|unlink|unlinkat|rmdir|mkdir|mkdirat|link|linkat|symlink|"
                            r"symlinkat|truncate|ftruncate|chmod|fchmod|fchmodat|chown|fchown|fchownat|utimensat|flock)\("
                            r"|\bfcntl\(.*F_(OFD_)?SETLK")


# ---------------------------------------------------------------- what the agents wrote

UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
# Path below the agent's own directory -> transcript; group 1 is the id that the session's own id must contain.
RULES = {
    "claude-code": [
        re.compile(rf"projects/[^/]+/({UUID})\.jsonl"),
        re.compile(rf"projects/[^/]+/{UUID}/subagents/(?:.+/)?agent-([0-9A-Za-z-]+)\.jsonl"),
    ],
    "codex": [
        re.compile(rf"sessions/\d{{4}}/\d\d/\d\d/rollout-[0-9T-]+-({UUID})(?:_{UUID})?\.jsonl"),
        re.compile(rf"archived_sessions/rollout-[0-9T-]+-({UUID})(?:_{UUID})?\.jsonl"),
    ],
}


def transcripts(agent, root):
    """Transcripts below `root` as {real path: own id}, and the other JSONL files, which must NOT be mirrored."""
    found, others = {}, []
    for path in sorted(Path(root).rglob("*.jsonl")):
        relative = path.relative_to(root).as_posix()
        match = next((m for rule in RULES[agent] if (m := rule.fullmatch(relative))), None)
        if match:
            found[os.path.realpath(path)] = match.group(1)
        else:
            others.append(relative)
    return found, others


def snapshot(root):
    """Everything below `root`: kind, mode, size, time of change, inode, and a digest of every file."""
    seen = {}
    for folder, names, files in os.walk(root):
        for name in names + files:
            path = os.path.join(folder, name)
            s = os.lstat(path)
            row = [stat.filemode(s.st_mode), s.st_size, s.st_mtime_ns, s.st_ino]
            if stat.S_ISREG(s.st_mode):
                row.append(hashlib.sha256(Path(path).read_bytes()).hexdigest())
            seen[os.path.relpath(path, root)] = row
    return seen


# ---------------------------------------------------------------- what the daemon says and keeps

class Ctl:
    """`tracecraftctl`, as a user would call it."""

    def __init__(self, program, socket):
        self.program, self.socket = program, socket

    def run(self, *words):
        done = subprocess.run([self.program, *words, "--socket", self.socket], stdin=subprocess.DEVNULL,
                              capture_output=True, timeout=CTL_LIMIT_SECONDS)
        if done.returncode:
            raise RuntimeError("tracecraftctl %s exited %d: %s" % (
                " ".join(words), done.returncode, done.stderr.decode("utf-8", "replace").strip()[:300]))
        return done.stdout

    def sessions(self):
        return json.loads(self.run("list", "--json"))["sessions"]


def stored(bucket, session):
    """A session's bytes straight from the store: the parts that its manifest names, in order.

    Deliberately not through the daemon: `show` alone could be right while the bucket is not.
    """
    folder = Path(bucket, "sessions", session["harness"], session["id"])
    manifest = json.loads((folder / "meta.json").read_text())
    listed = sorted(p.name for p in folder.glob("part-*.jsonl"))
    content = b""
    for entry in sorted(manifest["parts"], key=lambda e: e["seq"]):
        names = [n for n in listed if n.startswith("part-%05d-" % entry["seq"])]
        if len(names) > 1:
            names = [n for n in names if str(entry["uuid"])[:8] in n]
        if len(names) != 1:
            raise RuntimeError("part %d of the manifest is %d objects" % (entry["seq"], len(names)))
        listed.remove(names[0])
        content += (folder / names[0]).read_bytes()
    if listed:
        raise RuntimeError("parts that the manifest does not name: " + ", ".join(listed))
    return content


# ---------------------------------------------------------------- the comparison

class Judge:
    """Collects complaints; knows what was planted and where the agents' directories are."""

    def __init__(self, roots, secrets, bucket, rewritten=()):
        self.roots, self.secrets, self.bucket = roots, secrets, bucket
        # Real path of a file that its agent replaced -> copy of what it was shortly before.
        self.rewritten = {os.path.realpath(p): c for p, c in rewritten}
        self.complaints = []

    def complain(self, agent, text):
        self.complaints.append((agent, text))

    def expected(self, path):
        """What the mirror must hold for a file: its complete records, the planted secrets replaced. Also how many were."""
        data = Path(path).read_bytes()
        data = data[:data.rfind(b"\n") + 1]
        count = 0
        for secret in self.all_secrets():
            count += data.count(secret)
            data = data.replace(secret, MARK)
        return data, count

    def all_secrets(self):
        return [s for of_agent in self.secrets.values() for s in of_agent]

    def compare_bytes(self, agent, what, want, got):
        if want == got:
            return True
        at = next((i for i, (a, b) in enumerate(zip(want, got)) if a != b), min(len(want), len(got)))
        row = want[:at].count(b"\n") + 1
        more = got.count(b"[REDACTED:") - want.count(b"[REDACTED:")
        hint = ""
        if any(s in got for s in self.all_secrets()):
            hint = "; a planted secret is in it"
        elif more > 0:
            names = sorted(set(re.findall(rb"\[REDACTED:([a-z0-9_]+)\]", got)))
            hint = "; %d more replacements than planted secrets (%s)" % (more, b", ".join(names).decode())
        elif got and want.startswith(got):
            hint = "; the end is missing"
        self.complain(agent, "%s differs: %d bytes wanted, %d there, first difference in row %d at byte %d%s\n      wanted ...%r...\n      there  ...%r..." % (
            what, len(want), len(got), row, at, hint, want[max(0, at - 40):at + 60], got[max(0, at - 40):at + 60]))
        return False

    def hollow(self, agent, found):
        """A run in which the agent wrote nothing, or not what was planted, proves nothing: complain."""
        if not found:
            return self.complain(agent, "the agent wrote no transcript below " + self.roots[agent])
        text = b"".join(Path(p).read_bytes() for p in found)
        for n, secret in enumerate(self.secrets.get(agent, []), 1):
            if secret not in text:
                self.complain(agent, "planted secret %d is not in what the agent wrote: the run proves nothing" % n)
        if not self.secrets.get(agent):
            self.complain(agent, "no secret was planted: the run proves nothing")

    def session(self, agent, path, own_id, sessions, ctl):
        """One transcript against `list`, `show --raw`, `show` and the bucket. Returns a row for the report, or None."""
        name = os.path.basename(path)
        mine = [s for s in sessions if os.path.realpath(s["source_path"]) == path]
        live = [s for s in mine if s["state"] != "superseded"]
        if len(live) != 1:
            return self.complain(agent, "%s: %d sessions in `list` for this file, 1 wanted" % (name, len(live)))
        s = live[0]
        if s["harness"] != agent or own_id not in s["id"]:
            self.complain(agent, "%s: listed as %s/%s" % (name, s["harness"], s["id"]))
        if path in self.rewritten:
            self.earlier_life(agent, path, name, [m for m in mine if m is not s])
        elif s["generation"] != 1 or len(mine) > 1:
            self.complain(agent, "%s: only appended to or moved, but it is in generation %d" % (name, s["generation"]))
        if s.get("problem"):
            self.complain(agent, "%s: problem %s" % (name, s["problem"].get("code")))
        want, count = self.expected(path)
        if s["redactions"].get(PATTERN, 0) != count:
            self.complain(agent, "%s: %d secrets planted, `list` counts %d" % (name, count, s["redactions"].get(PATTERN, 0)))
        ok = self.compare_bytes(agent, name + ": `show --raw`", want, ctl.run("show", s["id"], "--raw"))
        try:
            ok &= self.compare_bytes(agent, name + ": bucket", want, stored(self.bucket, s))
        except (OSError, RuntimeError, ValueError, KeyError) as e:
            ok = self.complain(agent, "%s: bucket: %s" % (name, e))
        shown = ctl.run("show", s["id"])
        self.readable(agent, name, shown)
        return {"session": s, "name": name, "rows": want.count(b"\n"), "bytes": len(want), "secrets": count, "ok": bool(ok), "shown": shown}

    def earlier_life(self, agent, path, name, earlier):
        """A file that was replaced: what it was before must still be in the store, as the first generation. The agent appends
        a few rows before it replaces the file, which the daemon may or may not have seen: hence a prefix."""
        if [m["generation"] for m in earlier] != [1]:
            return self.complain(agent, "%s: rewritten once, but its earlier generations are %s" % (name, [m["generation"] for m in earlier]))
        want, _ = self.expected(self.rewritten[path])
        got = stored(self.bucket, earlier[0])
        self.compare_bytes(agent, name + ": first generation", want, got[:len(want)])

    def readable(self, agent, name, shown):
        """What a program can say about "reads well"; the rest is for the human who sees the first lines."""
        if not shown.strip():
            self.complain(agent, name + ": `show` prints nothing")
        if re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", shown):
            self.complain(agent, name + ": `show` prints control characters to a pipe")
        if any(s in shown for s in self.all_secrets()):
            self.complain(agent, name + ": `show` prints a planted secret")
        try:
            shown.decode()
        except UnicodeDecodeError as e:
            self.complain(agent, "%s: `show` is not UTF-8: %s" % (name, e.reason))

    def check(self, ctl, words=()):
        """Everything that needs the daemon alive. `words` are said by the user in each agent's main session."""
        flushed = time.monotonic()
        try:
            ctl.run("flush")
        except (RuntimeError, subprocess.TimeoutExpired) as e:
            return self.complain("", "flush: %s" % e)
        flushed = time.monotonic() - flushed
        sessions, rows, known = ctl.sessions(), {}, set()
        for agent, root in self.roots.items():
            found, others = transcripts(agent, root)
            self.hollow(agent, found)
            known.update(found)
            rows[agent] = [r for p, own in found.items() if (r := self.session(agent, p, own, sessions, ctl))]
            for word in words:
                if found and not any(word.encode() in r["shown"] for r in rows[agent]):
                    self.complain(agent, "`show` of no session has the word %r that the user said" % word)
            if others:
                print("  %s: not transcripts, must not be mirrored: %s" % (agent, ", ".join(others)))
        for s in sessions:
            if os.path.realpath(s["source_path"]) not in known:
                self.complain(s["harness"], "`list` has %s, which is no transcript: %s" % (s["id"], s["source_path"]))
        self.report(rows, flushed)

    def held_open(self, pid, home):
        """Between flushes the daemon must hold none of the agents' files open. One clean look of several is enough, because
        a scan may be under way in any single one."""
        for _ in range(20):
            held = []
            for fd in Path("/proc/%s/fd" % pid).iterdir():
                with contextlib.suppress(OSError):
                    held.append(os.readlink(fd))
            held = [h for h in held if h.startswith(home + "/")]
            if not held:
                return
            time.sleep(0.1)
        self.complain("", "the daemon holds open: " + ", ".join(held))

    def report(self, rows, flushed):
        print("  flush answered after %.2f s" % flushed)
        for agent, of_agent in rows.items():
            for r in of_agent:
                s = r["session"]
                print("\n  %s %s: %d rows, %d bytes, %d parts, %d secrets out, %s" % (
                    agent, s["id"], r["rows"], r["bytes"], s["parts"], r["secrets"], "equal" if r["ok"] else "NOT EQUAL"))
                for line in r["shown"].decode("utf-8", "replace").splitlines()[:SHOWN_LINES]:
                    print("    | " + line[:150])

    def aftermath(self, secret_free, before, home, trace=None):
        """Everything that is true once the daemon has ended: nothing secret left behind, nothing of the agents' touched."""
        for agent, root in self.roots.items():
            for path in transcripts(agent, root)[0]:
                self.stored_once(agent, path)
        marks = 0
        for place in [self.bucket, *secret_free]:
            marks += self.scan(place)
        if not marks:
            self.complain("", "no %s anywhere in the bucket: nothing was redacted" % MARK.decode())
        now = snapshot(home)
        for path in sorted(before.keys() | now.keys()):
            if before.get(path) != now.get(path):
                kind = "new" if path not in before else "gone" if path not in now else "changed"
                self.complain("", "the daemon touched the agents' home: %s is %s" % (path, kind))
        if trace:
            self.traced(trace, home)

    def stored_once(self, agent, path):
        """The bucket alone, without a daemon: some session of this agent has exactly these bytes."""
        want, _ = self.expected(path)
        equal = 0
        for meta in Path(self.bucket, "sessions", agent).glob("*/meta.json"):
            with contextlib.suppress(OSError, RuntimeError, ValueError, KeyError):
                equal += stored(self.bucket, {"harness": agent, "id": meta.parent.name}) == want
        if equal != 1:
            self.complain(agent, "%s: %d sessions of the bucket equal it after the daemon's end, 1 wanted" % (os.path.basename(path), equal))

    def scan(self, place):
        """Looks for planted secrets in the names and bytes of a file or directory; returns how many replacements it saw."""
        marks = 0
        paths = [Path(place)] if os.path.isfile(place) else sorted(Path(place).rglob("*"))
        for path in paths:
            data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            marks += data.count(MARK)
            for agent, of_agent in self.secrets.items():
                for n, secret in enumerate(of_agent, 1):
                    if secret in data or secret in os.fsencode(path):
                        self.complain(agent, "planted secret %d is in %s" % (n, path))
        return marks

    def traced(self, trace, home):
        """A system call trace of the daemon must hold no call that changes something below the agents' home."""
        opened = 0
        for line in Path(trace).read_text(errors="replace").splitlines():
            if home not in line:
                continue
            opened += "open" in line
            if CHANGING_CALLS.search(line) or ("open" in line and WRITING_FLAGS.search(line)):
                self.complain("", "the daemon's trace: " + line[:200])
        if not opened:
            self.complain("", "the trace shows no opened file of the agents: it proves nothing")
        else:
            print("  trace: %d opens below the agents' home, none of them for writing unless complained about" % opened)

    def verdict(self):
        for agent, text in self.complaints:
            print("  COMPLAINT %s%s" % (agent + ": " if agent else "", text))
        return 1 if self.complaints else 0


def caught_up(ctl, agent, root, deadline_seconds):
    """Waits until every transcript is stored as far as it was written at the call: the proof that the mirror is live."""
    found, _ = transcripts(agent, root)
    want = {p: os.path.getsize(p) for p in found}
    end, began, behind = time.monotonic() + deadline_seconds, time.monotonic(), "the agent wrote nothing"
    while want:
        try:
            have = {os.path.realpath(s["source_path"]): s for s in ctl.sessions() if s["state"] != "superseded"}
        except (RuntimeError, ValueError) as e:
            have, behind = {}, str(e)
        late = [p for p, size in want.items()
                if p not in have or have[p]["source_bytes"] < size or have[p]["pending_bytes"] or not have[p]["stored_bytes"]]
        if not late:
            print("  %s: %d transcripts stored %.1f s after the turn" % (agent, len(want), time.monotonic() - began))
            return 0
        if time.monotonic() > end:
            behind = "%s is not stored up to byte %d" % (late[0], want[late[0]])
            break
        time.sleep(0.1)
    print("  COMPLAINT %s: after %g s: %s" % (agent, deadline_seconds, behind))
    return 1


# ---------------------------------------------------------------- command line

def main():
    if sys.argv[1:] == ["--self-test"]:
        sys.dont_write_bytecode = True
        import selftest
        return selftest.self_test()
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = ap.add_subparsers(dest="verb", required=True)
    p = sub.add_parser("snapshot")
    p.add_argument("dir")
    for verb in ("caught-up", "check", "aftermath"):
        p = sub.add_parser(verb)
        p.add_argument("--root", action="append", required=True, metavar="AGENT=DIR", help="an agent's own directory")
        p.add_argument("--ctl"), p.add_argument("--socket"), p.add_argument("--bucket")
        p.add_argument("--secrets", help="file with one `AGENT SECRET` a line")
        if verb == "caught-up":
            p.add_argument("--deadline", type=float, default=20), p.add_argument("agent")
        if verb == "check":
            p.add_argument("--pid", required=True, help="of the daemon"), p.add_argument("--home", required=True)
            p.add_argument("--rewritten", action="append", default=[], metavar="FILE=COPY")
            p.add_argument("--word", action="append", default=[], help="said by the user in each agent's session")
        if verb == "aftermath":
            p.add_argument("--secret-free", action="append", default=[]), p.add_argument("--trace")
            p.add_argument("--home", required=True), p.add_argument("--before", required=True)
    args = ap.parse_args()
    if args.verb == "snapshot":
        print(json.dumps(snapshot(args.dir)))
        return 0
    roots = dict(r.split("=", 1) for r in args.root)
    ctl = Ctl(args.ctl, args.socket)
    if args.verb == "caught-up":
        return caught_up(ctl, args.agent, roots[args.agent], args.deadline)
    secrets = {}
    for line in Path(args.secrets).read_text().splitlines():
        agent, secret = line.split()
        secrets.setdefault(agent, []).append(secret.encode())
    judge = Judge(roots, secrets, args.bucket, [r.split("=", 1) for r in getattr(args, "rewritten", [])])
    if args.verb == "check":
        judge.check(ctl, args.word)
        judge.held_open(args.pid, args.home)
    else:
        judge.aftermath(args.secret_free, json.loads(Path(args.before).read_text()), args.home, args.trace)
    return judge.verdict()


if __name__ == "__main__":
    sys.exit(main())
