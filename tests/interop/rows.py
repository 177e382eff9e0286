"""Cases of tests/interop for Hermes, whose sessions are rows of a database.

Owns a writer that does to the tables what Hermes does, and what is right of such a session in a bucket that both tools use; processes
and comparisons are the stage's.

The reference tool takes rows by id and knows only that there are more: of a row that changed or was deleted it says "nothing new".
We write such a row again, or a tombstone. That is the one difference, and it is asserted where it shows; its readers take these
lines for what they are, lines.
"""

import json
import sqlite3

from transcripts import OURS_ONLY, PAYLOAD, TOKEN

SCHEMA = """
    PRAGMA journal_mode = WAL;
    CREATE TABLE sessions (id TEXT PRIMARY KEY, source TEXT NOT NULL, model TEXT, system_prompt TEXT, parent_session_id TEXT,
        started_at REAL NOT NULL, ended_at REAL, end_reason TEXT, message_count INTEGER DEFAULT 0, cwd TEXT, git_branch TEXT,
        title TEXT);
    CREATE TABLE messages (id INTEGER PRIMARY KEY AUTOINCREMENT, session_id TEXT NOT NULL, role TEXT NOT NULL, content TEXT,
        tool_calls TEXT, timestamp REAL NOT NULL, active INTEGER NOT NULL DEFAULT 1, compacted INTEGER NOT NULL DEFAULT 0,
        api_content TEXT);
"""

# In the first nothing is that the two tools redact differently: what both write of it is the same to the byte.
PLAIN = "20260102_030405_aaaaaa"
ODD = "20260102_030406_bbbbbb"
SESSIONS = (PLAIN, ODD)

TEXTS = {
    PLAIN: ["plain", f"a {TOKEN} b", "\u00e4\u6f22\U0001f600 \u2028 \x7f", '\x00json:[{"type": "text", "text": "\u00e9", "n": 1.50}]', None],
    ODD: [f"a {OURS_ONLY} b", "[REDACTED:hf_token] was there before", json.dumps({"encrypted_content": PAYLOAD}), f"{TOKEN} {OURS_ONLY}"],
}


class Hermes:
    """A writer to the default profile's database in a scene's home, alive as long as the case is."""

    def __init__(self, scene):
        folder = scene.home / ".hermes"
        folder.mkdir(parents=True)
        self.db = sqlite3.connect(folder / "state.db", isolation_level=None)
        self.db.executescript(SCHEMA)
        self.said = dict.fromkeys(SESSIONS, 0)
        for session in SESSIONS:
            self.run("INSERT INTO sessions (id, source, model, started_at, cwd) VALUES (?, 'cli', 'stub', 1767323045.5, ?)", session, scene.CWD)

    def run(self, sql, *values):
        self.db.execute(sql, values)

    def say(self, count=1):
        """Lets every session have so many rows more."""
        insert = "INSERT INTO messages (session_id, role, content, tool_calls, timestamp) VALUES (?, ?, ?, ?, ?)"
        for number in range(count):
            for session, texts in TEXTS.items():
                at = self.said[session]
                calls = json.dumps([{"name": "run", "n": at}]) if at % 2 else None
                self.run(insert, session, "user", texts[at % len(texts)], calls, 1767323046.25 + number)
                self.said[session] += 1

    def ids(self, session):
        return [row[0] for row in self.db.execute("SELECT id FROM messages WHERE session_id = ? ORDER BY id", (session,))]

    def undo(self, session):
        """The first row is taken back (or restored), the second is deleted; tells the ids."""
        first, second = self.ids(session)[:2]
        self.run("UPDATE messages SET active = 1 - active WHERE id = ?", first)
        self.run("DELETE FROM messages WHERE id = ?", second)
        return first, second


def lines_of(content):
    return [line + b"\n" for line in content.split(b"\n")[:-1]]


def lines_by_id(content):
    return {json.loads(line)["id"]: line for line in lines_of(content)}


def tombstone(session, row):
    return f'{{"id": {row}, "session_id": "{session}", "deleted": true}}\n'.encode()


def stored_in(scene):
    """All parts of the project; manifests are put again for other reasons."""
    keys = scene.stage.moto.keys(scene.project)
    return {key: scene.stage.moto.get(key) for key in keys if not key.endswith("meta.json")}


def both_readers_agree(scene, when):
    """Its show and our replay say what is listed, for each session. Needs no daemon, leaves none."""
    scene.start()
    for session in SESSIONS:
        stored = scene.listing("hermes", session)
        scene.same(f"{session} {when}, our replay", scene.replay("hermes", session), stored)
        scene.same_shown(f"{session} {when}", "hermes", session, stored)
        scene.no_second_generation("hermes", session)
    scene.stop()


def compacted_by_it(scene):
    for keep, session in enumerate(SESSIONS):
        before = scene.listing("hermes", session)
        said = scene.peer("session", "compact", session, "--keep-tail", str(keep)).decode()
        if "merged" not in said:
            scene.differ(f"{session}: its compact said {said!r}")
        scene.same(f"{session} compacted, by listing", scene.listing("hermes", session), before)


def goes_on(scene, hermes, when):
    """More rows, a row taken back and one deleted: we add exactly these lines, and then nothing, with our state and without."""
    before = {session: (scene.parts("hermes", session), scene.listing("hermes", session)) for session in SESSIONS}
    old = {session: hermes.ids(session) for session in SESSIONS}
    undone = {session: hermes.undo(session) for session in SESSIONS}
    hermes.say(2)
    scene.once()
    now = scene.reference()
    for session in SESSIONS:
        keys, had = before[session]
        rows = lines_by_id(now[f"hermes/{session}"])
        first, second = undone[session]
        new = [rows[row] for row in hermes.ids(session) if row not in old[session]]
        added = b"".join([rows[first], tombstone(session, second), *new])
        scene.same(f"{session} {when}: what was there and what we added", scene.listing("hermes", session), had + added)
        if not set(keys) <= set(scene.parts("hermes", session)):
            scene.differ(f"{session} {when}: parts are gone")
    stored = stored_in(scene)
    scene.once()
    scene.forget_state()
    scene.once()
    scene.same(f"{when}: parts that came with nothing new", sorted(set(stored_in(scene)) ^ set(stored)), [])
    both_readers_agree(scene, when)


def case_a_hermes(scene):
    """Hermes: its list, show --tail and compact work on our log of rows, and replay our bytes"""
    hermes = Hermes(scene)
    for _ in range(3):
        hermes.say(2)
        scene.once()
    now = scene.reference()
    for session in SESSIONS:
        scene.same(f"{session}, only rows that came", scene.listing("hermes", session), now[f"hermes/{session}"])
    goes_on(scene, hermes, "changed")
    listed = [line.split() for line in scene.peer("session", "list", "--limit", "1000").decode().splitlines()[2:]]
    found = sorted((row[0], row[1].rstrip("…"), int(row[2].replace(",", "")), int(row[3])) for row in listed)
    sizes = [(len(scene.listing("hermes", session)), len(scene.parts("hermes", session))) for session in SESSIONS]
    scene.same("its list", found, sorted(("hermes", s[:8], *size) for s, size in zip(SESSIONS, sizes)))
    compacted_by_it(scene)
    both_readers_agree(scene, "compacted by it")


def mirrored_by_it(scene, flushes=3):
    hermes = Hermes(scene)
    for _ in range(flushes):
        hermes.say(2)
        for session in SESSIONS:
            scene.mirror("hermes", session)
    return hermes


def case_b_hermes(scene):
    """Hermes: we continue what it mirrored at its last row, and say what it cannot: what changed since"""
    hermes = mirrored_by_it(scene)
    ends = {session: hermes.ids(session)[-1] for session in SESSIONS}
    before = stored_in(scene)
    scene.once()
    scene.same("parts that came with nothing new", sorted(set(stored_in(scene)) ^ set(before)), [])
    now = scene.reference()
    scene.same("what both tools write of a plain session", scene.listing("hermes", PLAIN), now[f"hermes/{PLAIN}"])
    goes_on(scene, hermes, "continued")
    for session in SESSIONS:
        ranges = [part["cursor_range"] for part in scene.meta("hermes", session)["parts"]]
        scene.same(f"{session}: where ours begins", ranges[3][0], ends[session])
        scene.same(f"{session}: ranges that abut", [r[1] for r in ranges[:-1]], [r[0] for r in ranges[1:]])


def case_b_hermes_changes(scene):
    """Hermes: rows that changed and were deleted are nothing new to it, and lines of ours"""
    hermes = mirrored_by_it(scene)
    before = {session: scene.listing("hermes", session) for session in SESSIONS}
    undone = {session: hermes.undo(session) for session in SESSIONS}
    for session in SESSIONS:
        said = scene.mirror("hermes", session).decode()
        if "nothing new" not in said:
            scene.differ(f"{session}: its mirror said {said!r}")
    scene.once()
    now = scene.reference()
    for session in SESSIONS:
        first, second = undone[session]
        added = lines_by_id(now[f"hermes/{session}"])[first] + tombstone(session, second)
        scene.same(f"{session}: what we added", scene.listing("hermes", session), before[session] + added)
    both_readers_agree(scene, "changed")


def case_c_hermes(scene):
    """Hermes: what it mirrored and compacted we continue"""
    hermes = mirrored_by_it(scene)
    compacted_by_it(scene)
    before = stored_in(scene)
    scene.once()
    scene.same("parts that came with nothing new", sorted(set(stored_in(scene)) ^ set(before)), [])
    goes_on(scene, hermes, "continued")
    # Merged again, now with lines of ours in it.
    compacted_by_it(scene)
    goes_on(scene, hermes, "merged again")


def case_c_hermes_ours(scene):
    """Hermes: what we wrote and it compacted we continue, with our state and without"""
    hermes = Hermes(scene)
    for _ in range(3):
        hermes.say(2)
        scene.once()
    for lost in (False, True):
        compacted_by_it(scene)
        if lost:
            scene.forget_state()
        goes_on(scene, hermes, "without our state" if lost else "with our state")
    scene.start()
    for session in SESSIONS:
        before = scene.listing("hermes", session)
        scene.ctl("compact", f"hermes/{session}")
        scene.same(f"{session}, compacted by us", scene.listing("hermes", session), before)
        scene.same(f"{session}, objects then", len(scene.parts("hermes", session)), 1)
    scene.stop()
