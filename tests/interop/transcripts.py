"""Transcripts for tests/interop: made-up ones with what the two tools treat differently, and those of a folder of samples.

Knows records and where they end; knows nothing of tools and buckets.
"""

import json
import os
import re
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]

TOKEN = "hf_" + "aB3dE5fG7hJ9kL1mN2pQ4rS6tU8vW0xYzZ"  # Both tools know this shape; made up.
OURS_ONLY = "glpat-" + "Xy3kQ9mZpL7vT2nR8sWd"  # Only ours does; made up.
PAYLOAD = "gAAAAABmsk-" + "0123456789abcdefghijklmnopqrstuvwxyz"  # The reference tool takes the middle for a key.


def record(harness, number, text):
    """A record as the harness writes it, near enough: both tools take bytes."""
    if harness == "codex":
        row = {"type": "event_msg", "payload": {"type": "agent_message", "message": text, "n": number}}
    elif harness == "openclaw":
        row = {"type": "message", "id": f"m{number}", "message": {"role": "user", "content": text}}
    else:
        row = {"type": "user", "uuid": f"u{number}", "message": {"role": "user", "content": text}}
    return json.dumps({"timestamp": "2026-01-02T03:04:05.000Z", **row}).encode() + b"\n"


def made_up(harness):
    """Records with what the two tools treat differently."""
    texts = ["plain", f"a {TOKEN} b", f"a {OURS_ONLY} b", "\u00e4\u6f22\U0001f600", "[REDACTED:hf_token] was there before"]
    rows = [record(harness, at, text) for at, text in enumerate(texts * 3)]
    sealed = json.dumps({"type": "response_item", "payload": {"type": "reasoning", "encrypted_content": PAYLOAD}})
    return b"".join(rows) + sealed.encode() + b"\n" + record(harness, 99, "last")


def samples():
    """Transcripts by harness: made-up ones, and those of the folder of samples. All end with a newline."""
    found = {harness: [(f"made-up-{harness}", made_up(harness))] for harness in ("claude-code", "codex", "openclaw")}
    folder = os.environ.get("TRACECRAFT_SAMPLES")
    if not folder and (REPO.parent / "shared/samples").is_dir():
        folder = REPO.parent / "shared/samples"
    if not folder:
        print("SKIPPED samples: TRACECRAFT_SAMPLES is not set; made-up transcripts have to do")
        return found
    places = [
        ("claude-code", "claude-code/jnarowski-agentcmd/full/*.jsonl"),
        ("claude-code", "claude-code/daaain-claude-code-log/*.jsonl"),
        ("codex", "real/codex/sessions/**/rollout-*.jsonl"),
        ("openclaw", "pi/badlogic-pi-mono/*.jsonl"),
        ("openclaw", "real/pi/sessions/*/*.jsonl"),
    ]
    for harness, pattern in places:
        for path in sorted(Path(folder).glob(pattern)):
            content = path.read_bytes()
            # A sub-agent has its parent's id before its own here, and not there: a case of its own.
            is_sub_agent = re.search(rb'"parent_thread_id": *"', content.split(b"\n", 1)[0])
            if is_sub_agent or content.count(b"\n") < 4:
                continue
            stem = re.sub(r"^rollout-[\dT-]{19}-", "", path.stem) if harness == "codex" else path.stem
            found[harness].append((stem, content if content.endswith(b"\n") else content + b"\n"))
    return found


def pieces(content, count, inside=False):
    """Positions at which a session is cut into `count` pieces: after records, or in the middle of some."""
    ends = [at + 1 for at, byte in enumerate(content) if byte == 10]
    cuts = [ends[(len(ends) - 1) * number // count] for number in range(1, count)]
    if inside:
        cuts = [at + 7 for at in cuts]
        if TOKEN.encode() in content:
            cuts[0] = content.index(TOKEN.encode()) + 11
    return sorted(set(cuts)) + [len(content)]
