//! `tracecraftctl verify`: a bucket is damaged by hand in each way, and the program says which; what can be mended is mended,
//! and the oracle agrees; sessions that grow and are compacted meanwhile are no reason to complain.
//!
//! Knows the bucket's layout and the JSON of the answer; nothing of how either comes about.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::daemon::{Daemon, ctl, ctl_ok, status};
use crate::support::home::{Home, files_below, said};
use crate::support::judge;
use crate::support::oracle::Bucket;
use crate::support::planted::Planted;
use crate::support::writers::Transcript;
use crate::support::{POLL, wait_until_ok};

const SEED: u64 = 20_261_122;

/// A bucket with one session of three parts, its source and its daemon.
pub(crate) struct Case {
    pub(crate) home: Home,
    pub(crate) planted: Planted,
    pub(crate) transcript: Transcript,
    daemon: Daemon,
    objects: Vec<(PathBuf, Vec<u8>)>,
}

impl Case {
    pub(crate) fn new(harness: &'static str) -> Case {
        let home = Home::new();
        let planted = Planted::exact_only(SEED);
        let mut transcript = Transcript::new(&home, harness, 1, SEED);
        transcript.grow(&planted, 4);
        let daemon = Daemon::start(&home, &["--interval", "200ms"]);
        ctl_ok(&home, &["flush"]);
        for _ in 0..2 {
            transcript.grow(&planted, 12);
            ctl_ok(&home, &["flush"]);
        }
        let objects = files_below(&home.bucket());
        let case = Case { home, planted, transcript, daemon, objects };
        assert!(case.parts().len() >= 3, "{:?}", case.parts());
        case
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.home.bucket().join("sessions").join(self.transcript.harness).join(&self.transcript.id)
    }

    fn manifest_path(&self) -> PathBuf {
        self.folder().join("meta.json")
    }

    pub(crate) fn parts(&self) -> Vec<PathBuf> {
        let is_part = |path: &PathBuf| path.extension().is_some_and(|e| e == "jsonl");
        files_below(&self.folder()).into_iter().map(|(path, _)| path).filter(is_part).collect()
    }

    pub(crate) fn change_manifest(&self, change: impl FnOnce(&mut Value)) {
        let path = self.manifest_path();
        let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut manifest);
        fs::write(path, manifest.to_string() + "\n").unwrap();
    }

    /// Everything as it was.
    pub(crate) fn restore(&self) {
        for (path, _) in files_below(&self.home.bucket()) {
            fs::remove_file(path).unwrap();
        }
        for (path, bytes) in &self.objects {
            fs::write(path, bytes).unwrap();
        }
    }

    fn complaints(&self) -> Vec<String> {
        judge::at_rest(&Bucket::read(&self.home.bucket()), &[self.transcript.source(&self.planted)])
    }
}

/// The events of `verify --json`.
fn events(output: &Output) -> Vec<Value> {
    let lines = output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).expect("each line is JSON")).collect()
}

/// All findings of a run, as code, weight and object.
pub(crate) fn findings(output: &Output) -> Vec<(String, String, String)> {
    let events = events(output);
    let sessions = events.iter().filter(|event| event["event"] == "session");
    let found = sessions.flat_map(|event| event["session"]["findings"].as_array().unwrap().clone());
    let text = |finding: &Value, field: &str| finding[field].as_str().unwrap().to_owned();
    found.map(|f| (text(&f, "code"), text(&f, "weight"), text(&f, "object"))).collect()
}

pub(crate) fn has(output: &Output, code: &str, weight: &str) -> bool {
    findings(output).iter().any(|(c, w, _)| c == code && w == weight)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_sound_bucket_is_fine_by_all_and_by_id_and_an_unknown_id_exits_4() {
    let case = Case::new("codex");
    let told = ctl(&case.home, &["verify"]);
    assert_eq!(told.status.code(), Some(0), "{}", said(&told));
    assert!(String::from_utf8_lossy(&told.stdout).contains("nothing is wrong"), "{}", said(&told));
    let id = &case.transcript.id[..12];
    for arguments in [&["verify", "--json"][..], &["verify", id, "--deep", "--json"]] {
        let told = ctl(&case.home, arguments);
        assert_eq!(told.status.code(), Some(0), "{}", said(&told));
        let done = events(&told).pop().unwrap();
        assert_eq!((&done["event"], &done["sums"]["fine"]), (&json!("done"), &json!(1)));
    }
    let told = ctl(&case.home, &["verify", id, "--deep"]);
    assert!(
        String::from_utf8_lossy(&told.stdout).contains("equals what is stored"),
        "{}",
        said(&told)
    );
    assert_eq!(ctl(&case.home, &["verify", "nobody"]).status.code(), Some(4));
    assert_eq!(files_below(&case.home.bucket()), case.objects, "looking changes nothing");
}

/// A way to damage a bucket, and what is to be said of it.
struct Damage {
    name: &'static str,
    code: &'static str,
    /// Words that a person reads.
    words: &'static str,
    /// Whether a repair makes the oracle content.
    mends: bool,
    damage: fn(&Case),
}

const DAMAGES: &[Damage] = &[
    Damage {
        name: "a part is missing",
        code: "part_missing",
        words: "is named by the manifest and not there",
        mends: true,
        damage: |case| fs::remove_file(&case.parts()[1]).unwrap(),
    },
    Damage {
        name: "a part is cut off",
        code: "part_size",
        words: "has another size than the manifest says",
        mends: true,
        damage: |case| fs::write(&case.parts()[1], "{\"cut\n").unwrap(),
    },
    Damage {
        name: "a byte is flipped",
        code: "part_digest",
        words: "does not hold the bytes that the manifest says",
        mends: true,
        damage: |case| flip(&case.parts()[2], 30),
    },
    Damage {
        name: "the manifest is missing",
        code: "manifest_missing",
        words: "has parts and no manifest",
        mends: true,
        damage: |case| fs::remove_file(case.manifest_path()).unwrap(),
    },
    Damage {
        name: "the manifest is torn",
        code: "manifest_invalid",
        words: "not JSON",
        mends: true,
        damage: |case| {
            let bytes = fs::read(case.manifest_path()).unwrap();
            fs::write(case.manifest_path(), &bytes[..bytes.len() / 2]).unwrap();
        },
    },
    Damage {
        name: "a number is given twice",
        code: "manifest_invalid",
        words: "seq 0",
        mends: true,
        damage: |case| case.change_manifest(|m| m["parts"][1]["seq"] = json!(0)),
    },
    Damage {
        name: "the sums are wrong",
        code: "totals",
        words: "total_uploaded_bytes is not the sum",
        mends: true,
        damage: |case| case.change_manifest(|m| m["total_uploaded_bytes"] = json!(7)),
    },
    Damage {
        name: "next_seq is too low",
        code: "next_seq",
        words: "next_seq is not above all numbers",
        mends: true,
        damage: |case| case.change_manifest(|m| m["next_seq"] = json!(1)),
    },
    Damage {
        name: "the manifest is an old one",
        code: "manifest_behind",
        words: "names fewer bytes than when this daemon last wrote it",
        mends: true,
        damage: |case| {
            case.change_manifest(|m| {
                let last = m["parts"].as_array_mut().unwrap().pop().unwrap();
                m["next_seq"] = last["seq"].clone();
                for (total, own) in [
                    ("total_uploaded_bytes", "uploaded_bytes"),
                    ("total_source_bytes", "source_bytes"),
                ] {
                    m[total] = json!(m[total].as_u64().unwrap() - last[own].as_u64().unwrap());
                }
                for (name, count) in last["redactions"].as_object().unwrap() {
                    let left =
                        m["redaction_counts"][name].as_u64().unwrap() - count.as_u64().unwrap();
                    m["redaction_counts"][name] = json!(left);
                }
                m["redaction_counts"]
                    .as_object_mut()
                    .unwrap()
                    .retain(|_, count| *count != json!(0));
            });
        },
    },
    Damage {
        name: "a leftover stays",
        code: "leftover",
        words: "is not named (any more)",
        mends: true,
        damage: |case| {
            let parts = case.parts();
            let two = [fs::read(&parts[0]).unwrap(), fs::read(&parts[1]).unwrap()].concat();
            let name = format!("part-00000-{}.jsonl", &hex(&two)[..8]);
            fs::write(case.folder().join(name), two).unwrap();
        },
    },
    Damage {
        name: "a gap",
        code: "gap",
        words: "no part holds them",
        mends: true,
        damage: |case| {
            case.change_manifest(|m| {
                let at = m["parts"][1]["cursor_range"][0].as_u64().unwrap();
                m["parts"][0]["cursor_range"] = json!([0, at - 1]);
                m["parts"][0]["source_bytes"] = json!(at - 1);
            });
        },
    },
    Damage {
        name: "an overlap",
        code: "overlap",
        words: "begins before the part before it ends",
        mends: true,
        damage: |case| {
            case.change_manifest(|m| {
                let at = m["parts"][1]["cursor_range"][0].as_u64().unwrap();
                m["parts"][0]["cursor_range"] = json!([0, at + 1]);
                m["parts"][0]["source_bytes"] = json!(at + 1);
            });
        },
    },
    Damage {
        name: "a newer program wrote the manifest",
        code: "manifest_version",
        words: "was written by a newer program",
        mends: false,
        damage: |case| case.change_manifest(|m| m["schema_version"] = json!(2)),
    },
    Damage {
        name: "a manifest is gone, and a part with it",
        code: "manifest_missing",
        words: "has parts and no manifest",
        mends: true,
        damage: |case| {
            fs::remove_file(case.manifest_path()).unwrap();
            fs::remove_file(case.parts().pop().unwrap()).unwrap();
        },
    },
    Damage {
        name: "the manifest is another session's",
        code: "manifest_foreign",
        words: "is the manifest of another session",
        mends: true,
        damage: |case| case.change_manifest(|m| m["session_id"] = json!("other")),
    },
    Damage {
        name: "everything is gone",
        code: "session_missing",
        words: "is gone, and all parts of the session with it",
        mends: true,
        damage: |case| fs::remove_dir_all(case.folder()).unwrap_or(()),
    },
];

/// Whether `status` knows of what a verification found.
fn is_shown(home: &Home) -> bool {
    let status = status(home).unwrap();
    status["problems"].as_array().unwrap().iter().any(|problem| problem["code"] == "stored_wrong")
}

#[test]
fn each_damage_is_told_with_its_object_and_mended_where_that_can_be() {
    let mut case = Case::new("claude-code");
    for Damage { name, code, words, mends, damage } in DAMAGES {
        fs::create_dir_all(case.folder()).unwrap();
        case.restore();
        damage(&case);
        let told = ctl(&case.home, &["verify"]);
        assert_eq!(told.status.code(), Some(1), "{name}: {}", said(&told));
        let text = String::from_utf8_lossy(&told.stdout).into_owned();
        assert!(text.contains(words) && text.contains("WRONG"), "{name}: {}", said(&told));
        let told = ctl(&case.home, &["verify", &case.transcript.id, "--json"]);
        assert_eq!(told.status.code(), Some(1), "{name}: {}", said(&told));
        assert!(has(&told, code, "wrong"), "{name}: {:?}", findings(&told));
        assert!(is_shown(&case.home), "{name}: status calls safe what is known to be damaged");
        let prefix = format!("sessions/claude-code/{}/", case.transcript.id);
        assert!(findings(&told).iter().all(|(_, _, object)| object.starts_with(&prefix)), "{name}");

        let before = files_below(&case.home.bucket());
        let told = ctl(&case.home, &["verify", "--repair", "--json"]);
        if *mends {
            assert_eq!(told.status.code(), Some(0), "{name}: {}", said(&told));
            assert!(findings(&told).iter().any(|(_, weight, _)| weight == "mended"), "{name}");
            assert_eq!(judge::verdict(case.complaints()), Ok(()), "{name}");
            assert!(!is_shown(&case.home), "{name}: it is mended");
            let told = ctl(&case.home, &["verify", "--deep", "--json"]);
            assert_eq!(told.status.code(), Some(0), "{name}: {}", said(&told));
        } else {
            assert_eq!(told.status.code(), Some(1), "{name}: {}", said(&told));
            assert_eq!(files_below(&case.home.bucket()), before, "{name}: nothing was changed");
        }
        assert!(case.daemon.exited().is_none(), "{name}");
    }
    // Each manifest that was replaced is kept for a person.
    let kept = files_below(&case.home.state_dir().join("set-aside/claude-code"));
    assert!(kept.len() >= 4, "{kept:?}");
    // The session goes on as if nothing had been.
    fs::create_dir_all(case.folder()).unwrap();
    case.restore();
    case.transcript.grow(&case.planted, 3);
    ctl_ok(&case.home, &["flush"]);
    assert_eq!(judge::verdict(case.complaints()), Ok(()));
}

#[test]
fn a_repair_never_deletes_what_only_one_object_holds() {
    let case = Case::new("openclaw");
    // Not named, and nobody else has its bytes.
    let only = b"{\"only\":\"copy\"}\n";
    let path = case.folder().join(format!("part-00001-{}.jsonl", &hex(only)[..8]));
    fs::write(&path, only).unwrap();
    let told = ctl(&case.home, &["verify", "--repair", "--json"]);
    assert_eq!(told.status.code(), Some(1), "{}", said(&told));
    assert!(has(&told, "leftover", "wrong"), "{}", said(&told));
    assert_eq!(fs::read(&path).unwrap(), only);

    // A part whose bytes are nowhere else: its source is gone.
    fs::remove_file(path).unwrap();
    fs::remove_file(&case.transcript.path).unwrap();
    ctl_ok(&case.home, &["flush"]);
    flip(&case.parts()[1], 5);
    let damaged = fs::read(&case.parts()[1]).unwrap();
    let told = ctl(&case.home, &["verify", "--repair", "--deep", "--json"]);
    assert_eq!(told.status.code(), Some(1), "{}", said(&told));
    assert!(has(&told, "part_digest", "wrong"), "{}", said(&told));
    assert_eq!(fs::read(&case.parts()[1]).unwrap(), damaged);

    // What is missing from a manifest and nowhere else stays missing, however often it is repaired.
    case.restore();
    fs::remove_file(case.manifest_path()).unwrap();
    fs::remove_file(case.parts().pop().unwrap()).unwrap();
    let before = files_below(&case.home.bucket());
    for _ in 0..2 {
        let told = ctl(&case.home, &["verify", "--repair", "--json"]);
        assert_eq!(told.status.code(), Some(1), "{}", said(&told));
        assert!(has(&told, "manifest_missing", "wrong"), "{}", said(&told));
        assert!(has(&told, "manifest_unmended", "unchecked"), "{}", said(&told));
        assert_eq!(files_below(&case.home.bucket()), before);
    }

    // A manifest with a gap, and no source that could tell its ranges.
    case.restore();
    case.change_manifest(|m| m["parts"][0]["cursor_range"] = json!([0, 1]));
    let before = files_below(&case.home.bucket());
    let told = ctl(&case.home, &["verify", "--repair", "--json"]);
    assert_eq!(told.status.code(), Some(1), "{}", said(&told));
    assert!(has(&told, "gap", "wrong") && has(&told, "manifest_unmended", "unchecked"));
    assert_eq!(files_below(&case.home.bucket()), before);
}

#[test]
fn a_store_that_is_away_could_not_be_checked_and_is_neither_damaged_nor_fine() {
    let case = Case::new("codex");
    let elsewhere = case.home.path().join("unmounted");
    fs::rename(case.home.bucket(), &elsewhere).unwrap();
    for arguments in [&["verify"][..], &["verify", "--repair"], &["verify", &case.transcript.id]] {
        let told = ctl(&case.home, arguments);
        assert_eq!(told.status.code(), Some(1), "{}", said(&told));
        let text = said(&told);
        assert!(text.contains("could not be checked") && !text.contains("WRONG"), "{text}");
        assert!(!text.contains("nothing is wrong\n"), "{text}");
    }
    fs::rename(&elsewhere, case.home.bucket()).unwrap();
    let told = ctl(&case.home, &["verify"]);
    assert_eq!(told.status.code(), Some(0), "{}", said(&told));
}

#[test]
fn what_this_daemon_does_not_record_is_checked_and_said_to_be_somebody_elses() {
    let case = Case::new("codex");
    let stranger = case.folder().with_file_name("somebody-elses");
    fs::create_dir_all(&stranger).unwrap();
    for part in case.parts() {
        fs::copy(&part, stranger.join(part.file_name().unwrap())).unwrap();
    }
    let manifest = fs::read_to_string(case.manifest_path()).unwrap();
    let manifest = manifest.replace(&case.transcript.id, "somebody-elses");
    fs::write(stranger.join("meta.json"), manifest).unwrap();
    let told = ctl(&case.home, &["verify"]);
    assert_eq!(told.status.code(), Some(0), "{}", said(&told));
    let words = "1 of them are not recorded by this daemon";
    assert!(String::from_utf8_lossy(&told.stdout).contains(words), "{}", said(&told));
    // Its damage is told; mending it is its own recorder's work.
    fs::remove_file(stranger.join("meta.json")).unwrap();
    let name = case.parts()[0].file_name().unwrap().to_owned();
    flip(&stranger.join(name), 3);
    let before = files_below(&stranger);
    let told = ctl(&case.home, &["verify", "--repair", "--json"]);
    assert!(
        has(&told, "unknown", "note") && has(&told, "unnamed_digest", "note"),
        "{}",
        said(&told)
    );
    assert_eq!(files_below(&stranger), before);
}

#[test]
fn sessions_that_grow_and_are_compacted_meanwhile_are_no_reason_to_complain() {
    let home = Home::new();
    let planted = Planted::exact_only(SEED);
    let mut transcripts: Vec<Transcript> = (0..6)
        .map(|number| {
            Transcript::new(
                &home,
                ["claude-code", "codex", "openclaw"][number as usize % 3],
                number,
                SEED,
            )
        })
        .collect();
    transcripts.iter_mut().for_each(|one| one.grow(&planted, 2));
    let _daemon = Daemon::start(&home, &["--interval", "100ms"]);
    ctl_ok(&home, &["flush"]);
    let rounds = std::env::var("TRACECRAFT_VERIFY_ROUNDS").ok().and_then(|text| text.parse().ok());
    let rounds = rounds.unwrap_or(60);
    let ending = AtomicBool::new(false);
    let transcripts = std::thread::scope(|scope| {
        let ids: Vec<String> = transcripts.iter().map(|one| one.id.clone()).collect();
        let (ending, planted, home) = (&ending, &planted, &home);
        let writer = scope.spawn(move || {
            let mut round = 0;
            while !ending.load(Ordering::Relaxed) {
                transcripts.iter_mut().for_each(|one| one.burst(planted, 3, POLL));
                round += 1;
                // Rewritten now and then, with a look between: each life is to be seen.
                if round % 40 == 0 {
                    ctl_ok(home, &["flush"]);
                    transcripts[0].replace(planted);
                    ctl_ok(home, &["flush"]);
                }
            }
            transcripts
        });
        scope.spawn(move || {
            for id in ids.iter().cycle().take_while(|_| !ending.load(Ordering::Relaxed)) {
                let told = ctl(home, &["compact", id]);
                assert!(told.status.success(), "{}", said(&told));
            }
        });
        let verdict = std::panic::catch_unwind(|| {
            for round in 0..rounds {
                let arguments = ["verify", "--json", ["--deep", "--repair"][round % 2]];
                let told = ctl(home, &arguments);
                let wrong: Vec<_> =
                    findings(&told).into_iter().filter(|(_, weight, _)| weight != "note").collect();
                assert!(
                    told.status.success() && wrong.is_empty(),
                    "{round}: {wrong:?}\n{}",
                    said(&told)
                );
            }
        });
        ending.store(true, Ordering::Relaxed);
        verdict.unwrap_or_else(|why| std::panic::resume_unwind(why));
        writer.join().unwrap()
    });
    ctl_ok(&home, &["flush"]);
    let sources: Vec<_> = transcripts.iter().map(|one| one.source(&planted)).collect();
    // What the daemon merges by itself may be under way yet.
    wait_until_ok("the bucket to come to rest", || {
        judge::verdict(judge::at_rest(&Bucket::read(&home.bucket()), &sources))
    });
}
