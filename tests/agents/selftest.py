"""Shows that compare.py can fail: a correct outcome of a run passes, and each of some thirty wrong ones is found and named.

Owns small made-up worlds (an agents' home, a bucket, a client); knows nothing of real agents or daemons. Run it with
`compare.py --self-test`; `tests/agents/run` does so before every run.
"""
import contextlib, hashlib, io, json, os, shutil, sys, tempfile
from pathlib import Path

from compare import MARK, PATTERN, Ctl, Judge, caught_up, snapshot

# A stand-in for `tracecraftctl` that reads a bucket as the daemon would: enough for the interface that is used above.
FAKE_CTL = r'''import json, sys
from pathlib import Path
here = Path(__file__).parent
words = sys.argv[1:]
if words[0] == "list":
    print((here / "list.json").read_text())
elif words[0] == "show":
    raw = b"".join(p.read_bytes() for p in sorted(here.glob("bucket/sessions/*/%s/part-*" % words[1])))
    special = here / ("shown" + ("-raw" if "--raw" in words else ""))
    sys.stdout.buffer.write(special.read_bytes() if special.exists() else raw)
elif words[0] == "flush":
    sys.exit(1 if (here / "flush-fails").exists() else 0)
'''


class World:
    """A small, correct outcome of a run in a temporary directory: two agents, three transcripts, their mirror."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.home, self.bucket, self.state = (self.folder / n for n in ("home", "bucket", "state"))
        self.secrets = {a: [b"AKIA" + t, b"AKIA" + t[::-1]] for a, t in (("claude-code", b"ABCDEFGH23456722"), ("codex", b"IJKLMNOP76543277"))}
        self.roots = {"claude-code": str(self.home / "cfg"), "codex": str(self.home / ".codex")}
        one, two, three = ("%08d-0000-4000-8000-000000000000" % n for n in (1, 2, 3))
        self.files = {
            self.home / "cfg/projects/-w" / (one + ".jsonl"): ("claude-code", one),
            self.home / "cfg/projects/-w" / one / "subagents/agent-ab12.jsonl": ("claude-code", one + "__agent-ab12"),
            self.home / ".codex/archived_sessions" / ("rollout-2026-11-22T15-47-27-%s.jsonl" % two): ("codex", two),
        }
        self.other = self.home / "cfg/history.jsonl"
        self.list, self.ids = [], [one, two, three]
        for path, (agent, ident) in self.files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [b'{"n":%d,"text":"lighthouse"}\n' % n for n in range(6)]
            if "subagents" not in path.parts:
                rows[2:4] = [b'{"text":"say \\n%s"}\n' % s for s in self.secrets[agent]]
            path.write_bytes(b"".join(rows))
            self.mirror(path, agent, ident, rows)
        self.other.write_bytes(b'{"not":"a transcript"}\n')
        self.state.mkdir()
        (self.state / "state.json").write_text("{}")
        self.trace = self.folder / "trace"
        self.trace.write_text('7 openat(AT_FDCWD, "%s/cfg/x.jsonl", O_RDONLY|O_NOFOLLOW) = 9\n' % self.home)
        self.save()
        ctl = self.folder / "ctl"
        ctl.write_text("#!%s -IS\n%s" % (sys.executable, FAKE_CTL))
        ctl.chmod(0o755)
        self.rewritten, self.held = [], None
        self.before = snapshot(self.home)

    def mirror(self, path, agent, ident, rows):
        folder = self.bucket / "sessions" / agent / ident
        folder.mkdir(parents=True)
        clean = [r.replace(self.secrets[agent][0], MARK).replace(self.secrets[agent][1], MARK) for r in rows]
        parts = []
        for seq, half in enumerate((b"".join(clean[:3]), b"".join(clean[3:])), 1):
            digest = hashlib.sha256(half).hexdigest()[:8]
            (folder / ("part-%05d-%s.jsonl" % (seq, digest))).write_bytes(half)
            parts.append({"seq": seq, "uuid": digest})
        (folder / "meta.json").write_text(json.dumps({"parts": parts}))
        count = b"".join(clean).count(MARK)
        self.list.append({"harness": agent, "id": ident, "generation": 1, "state": "live", "source_path": str(path), "parts": 2,
                          "source_bytes": path.stat().st_size, "stored_bytes": 1, "pending_bytes": 0,
                          "redactions": {PATTERN: count} if count else {}, "problem": None})

    def rewrite(self):
        """An agent replaces its first transcript by a shorter one; the mirror follows with a second generation."""
        path = next(iter(self.files))
        agent, ident = self.files[path]
        copy = self.folder / "copy.jsonl"
        shutil.copy(path, copy)
        rows = path.read_bytes().splitlines(keepends=True)[1:]
        path.write_bytes(b"".join(rows))
        self.mirror(path, agent, ident + "~2", rows)
        self.list[0]["state"], self.list[-1]["generation"] = "superseded", 2
        self.rewritten, self.before = [(path, copy)], snapshot(self.home)

    def save(self):
        (self.folder / "list.json").write_text(json.dumps({"sessions": self.list}))

    def first(self, kind):
        return sorted((self.bucket / "sessions/codex" / self.ids[1]).glob(kind))[0]

    def judge(self):
        """All three verdicts of a real run; returns whether they hold and what was printed."""
        out, judge = io.StringIO(), Judge(self.roots, self.secrets, str(self.bucket), self.rewritten)
        ctl = Ctl(str(self.folder / "ctl"), "no-socket")
        with contextlib.redirect_stdout(out):
            live = [caught_up(ctl, a, r, 0) for a, r in self.roots.items()]
            judge.check(ctl, ["lighthouse"])
            judge.held_open(os.getpid(), str(self.home))
            judge.aftermath([str(self.state)], self.before, str(self.home), str(self.trace))
            judge.verdict()
        return not judge.complaints and not any(live), out.getvalue()


def plant(path, secret):
    path.write_bytes(path.read_bytes() + secret)


def faults():
    """Name -> (how to spoil a correct world, what the complaint must say)."""
    def no_bucket(w):
        shutil.rmtree(w.bucket)

    def empty_run(w):
        shutil.rmtree(w.home)
        w.home.mkdir()
        w.before, w.list = {}, []
        no_bucket(w)
        w.bucket.mkdir()

    def drop(w):
        w.list.pop()

    def second_life(w):
        w.list.append(dict(w.list[0], generation=2, id=w.list[0]["id"] + "~2"))
        w.list[0] = dict(w.list[0], state="superseded")

    def stray(w):
        w.list.append(dict(w.list[0], id="history", source_path=str(w.other)))

    def unplanted(w):
        w.secrets["codex"].append(b"AKIA" + b"Q" * 16)

    def nothing_planted(w):
        w.secrets["codex"] = []

    def miscount(w):
        w.list[0]["redactions"] = {}

    def behind(w):
        w.list[0]["source_bytes"] -= 1

    def double(w):
        part = w.first("part-*")
        part.write_bytes(part.read_bytes() * 2)

    def over(w):
        part = w.first("part-*")
        part.write_bytes(part.read_bytes().replace(b"lighthouse", b"[REDACTED:generic]", 1))

    def cut(w):
        part = w.first("part-00002-*")
        part.write_bytes(part.read_bytes()[:-1])

    def first_life_lost(w):
        w.rewrite()
        w.list.pop(0)

    def first_life_spoilt(w):
        w.rewrite()
        part = sorted((w.bucket / "sessions/claude-code" / w.ids[0]).glob("part-*"))[0]
        part.write_bytes(part.read_bytes()[:-3])

    def no_second_life(w):
        w.rewrite()
        w.list = [dict(w.list[-1], generation=1), *w.list[1:-1]]

    def hold(w):
        w.held = w.other.open()

    def twin(w):
        folder = w.bucket / "sessions/codex"
        shutil.copytree(folder / w.ids[1], folder / w.ids[2])

    return {
        "an empty run": (empty_run, "wrote no transcript"),
        "an empty bucket": (no_bucket, "No such file"),
        "a session that is not listed": (drop, "0 sessions in `list`"),
        "a needless generation": (second_life, "generation 2"),
        "a rewritten file whose first life is lost": (first_life_lost, "its earlier generations are []"),
        "a rewritten file whose first life is damaged": (first_life_spoilt, "first generation differs"),
        "a rewritten file without a second generation": (no_second_life, "its earlier generations are []"),
        "a file that is held open": (hold, "the daemon holds open"),
        "a file mirrored that is no transcript": (stray, "which is no transcript"),
        "a planted secret that the agent never wrote": (unplanted, "the run proves nothing"),
        "no planted secret": (nothing_planted, "no secret was planted"),
        "wrong redaction counts": (miscount, "`list` counts 0"),
        "a mirror that lags": (behind, "is not stored up to byte"),
        "a part that is doubled": (double, "first difference in row 4"),
        "a replacement too many": (over, "more replacements than planted"),
        "a missing last byte": (cut, "the end is missing"),
        "an object that no manifest names": (lambda w: (w.first("part-*").parent / "part-00009-00000000.jsonl").write_bytes(b""), "does not name"),
        "a part that is gone": (lambda w: w.first("part-*").unlink(), "is 0 objects"),
        "a session stored twice": (twin, "2 sessions of the bucket equal"),
        "a secret in a part": (lambda w: plant(w.first("part-00002-*"), w.secrets["codex"][0]), "a planted secret is in it"),
        "a secret in a manifest": (lambda w: plant(w.first("meta.json"), b" " + w.secrets["codex"][1]), "planted secret 2 is in"),
        "a secret in the state directory": (lambda w: plant(w.state / "state.json", w.secrets["codex"][0]), "planted secret 1 is in"),
        "a secret in a name": (lambda w: (w.state / w.secrets["codex"][0].decode()).mkdir(), "planted secret 1 is in"),
        "a secret in `show`": (lambda w: (w.folder / "shown").write_bytes(b"lighthouse " + w.secrets["codex"][0]), "prints a planted secret"),
        "a secret in `show --raw` alone": (lambda w: (w.folder / "shown-raw").write_bytes(w.secrets["codex"][0]), "a planted secret is in it"),
        "escapes in `show`": (lambda w: (w.folder / "shown").write_bytes(b"lighthouse \x1b[2J"), "control characters"),
        "an empty `show`": (lambda w: (w.folder / "shown").write_bytes(b"\n"), "prints nothing"),
        "a `show` without what was said": (lambda w: (w.folder / "shown").write_bytes(b"hello\n"), "that the user said"),
        "a flush that fails": (lambda w: (w.folder / "flush-fails").touch(), "flush:"),
        "a new file in the agents' home": (lambda w: (w.home / ".codex/state.sqlite-shm").touch(), "state.sqlite-shm is new"),
        "a file of the agents that is gone": (lambda w: w.other.unlink(), "history.jsonl is gone"),
        "a touched file": (lambda w: os.utime(w.other, (1, 1)), "history.jsonl is changed"),
        "a writing open": (lambda w: plant(w.trace, b'7 openat(AT_FDCWD, "%s/x-shm", O_RDWR|O_CREAT) = 3\n' % os.fsencode(w.home)), "the daemon's trace"),
        "a lock": (lambda w: plant(w.trace, b'7 flock(9<%s/cfg/x.jsonl>, LOCK_EX) = 0\n' % os.fsencode(w.home)), "the daemon's trace"),
        "an empty trace": (lambda w: w.trace.write_text(""), "it proves nothing"),
    }


def self_test():
    bad = 0
    good = {"a correct mirror": (lambda w: None, None), "a rewritten file": (World.rewrite, None)}
    for name, (change, says) in {**good, **faults()}.items():
        with tempfile.TemporaryDirectory() as folder:
            world = World(os.path.realpath(folder))
            change(world)
            world.save()
            holds, printed = world.judge()
            if world.held:
                world.held.close()
            right = holds if says is None else not holds and says in printed
            bad += not right
            print("%s  %s" % ("ok    " if right else "WRONG ", name))
            if not right:
                print(printed)
    print("self-test: %s" % ("%d verdicts are wrong" % bad if bad else "every verdict is right"))
    return 1 if bad else 0
