//! Tables of what paths and first records mean, harness by harness.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use super::*;

fn env(home: &str, vars: &[(&str, &str)]) -> Env {
    let vars = vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Env { home: home.into(), vars }
}

fn roots(harness: &dyn Harness, home: &Path, vars: &[(&str, &str)]) -> Vec<String> {
    let env = Env { home: home.into(), ..env("", vars) };
    harness.roots(&env).iter().map(|root| root.path.display().to_string()).collect()
}

/// Classifies a path below `/r/<last>` and checks that every folder on the way may be entered.
fn classify(harness: &dyn Harness, last: &str, below: impl AsRef<Path>) -> Option<Candidate> {
    let root = Root { harness: harness.name(), path: Path::new("/r").join(last) };
    let candidate = harness.classify(&root, &root.path.join(&below));
    if candidate.is_some() {
        for folder in below.as_ref().ancestors().skip(1) {
            assert!(harness.descend(folder), "{} is pruned", folder.display());
        }
    }
    candidate
}

fn told(candidate: Option<Candidate>) -> Option<(String, Standing)> {
    candidate.map(|candidate| (candidate.id, candidate.standing))
}

fn live(id: &str) -> Option<(String, Standing)> {
    Some((id.to_owned(), Standing::Live))
}

fn archived(id: &str, order: &str) -> Option<(String, Standing)> {
    Some((id.to_owned(), Standing::Archived(order.to_owned())))
}

fn candidate(harness: &dyn Harness, last: &str, below: &str) -> Candidate {
    classify(harness, last, below).expect("the path is a transcript's")
}

const UUID: &str = "06381696-0074-49f8-863e-6ad4fac507f9";

#[test]
fn roots_follow_each_agents_own_variables() {
    let (claude, codex) = (claude_code::ClaudeCode, codex::Codex);
    let home = Path::new("/h");
    assert_eq!(roots(&claude, home, &[]), ["/h/.claude/projects"]);
    assert_eq!(roots(&claude, home, &[("CLAUDE_CONFIG_DIR", "/c")]), ["/c/projects"]);
    assert_eq!(roots(&claude, home, &[("CLAUDE_CONFIG_DIR", " ")]), ["/h/.claude/projects"]);
    assert_eq!(roots(&claude, home, &[("CLAUDE_CONFIG_DIR", "c")]), ["/h/c/projects"]);
    assert_eq!(roots(&claude, home, &[("CLAUDE_CONFIG_DIR", "~/c")]), ["/h/c/projects"]);
    assert_eq!(roots(&claude, home, &[("CLAUDE_CONFIG_DIR", "~")]), ["/h/projects"]);
    let both = ["/h/.codex/sessions", "/h/.codex/archived_sessions"];
    assert_eq!(roots(&codex, home, &[]), both);
    assert_eq!(roots(&codex, home, &[("CODEX_HOME", "")]), both);
    let moved = roots(&codex, home, &[("CODEX_HOME", "/x")]);
    assert_eq!(moved, ["/x/sessions", "/x/archived_sessions"]);
}

#[test]
fn openclaw_roots_are_the_state_directory_and_every_profile() {
    let harness = openclaw::OpenClaw;
    let scratch = tempfile::tempdir().unwrap();
    let home = scratch.path();
    let below = |names: &[&str]| -> Vec<String> {
        names.iter().map(|name| home.join(name).join("agents").display().to_string()).collect()
    };
    assert_eq!(roots(&harness, home, &[]), below(&[".openclaw"]));
    std::fs::create_dir(home.join(".clawdbot")).unwrap();
    assert_eq!(roots(&harness, home, &[]), below(&[".clawdbot"]));
    for name in [".openclaw", ".openclaw-work", ".openclaw-dev"] {
        std::fs::create_dir(home.join(name)).unwrap();
    }
    std::fs::File::create(home.join(".openclaw-notes")).unwrap();
    let all = below(&[".openclaw", ".openclaw-dev", ".openclaw-work"]);
    assert_eq!(roots(&harness, home, &[]), all);
    let elsewhere = home.display().to_string();
    assert_eq!(roots(&harness, Path::new("/nowhere"), &[("OPENCLAW_HOME", &elsewhere)]), all);
    let state = [("OPENCLAW_STATE_DIR", "/s"), ("OPENCLAW_HOME", "/nowhere")];
    assert_eq!(roots(&harness, home, &state), ["/s/agents"]);
    let profile = home.join(".openclaw-dev").display().to_string();
    let twice = roots(&harness, home, &[("OPENCLAW_STATE_DIR", &profile)]);
    assert_eq!(twice, below(&[".openclaw-dev", ".openclaw-work"]));
}

#[test]
fn p10_claude_code_paths_tell_sessions_and_sub_agents_and_nothing_else() {
    let harness = claude_code::ClaudeCode;
    let is = |below: &str| told(classify(&harness, "projects", below));
    assert_eq!(is(&format!("-home-dev/{UUID}.jsonl")), live(UUID));
    assert_eq!(is("-home-dev/my session.v2.jsonl"), live("my session.v2"));
    assert_eq!(is("-h/s/subagents/agent-a1.jsonl"), live("s__agent-a1"));
    assert_eq!(is("-h/s/subagents/workflows/run-1/agent-a1.jsonl"), live("s__agent-a1"));
    assert_eq!(is("-h/s/subagents/agent-acompact-9f.jsonl"), live("s__agent-acompact-9f"));
    assert_eq!(is("-h/s.orphaned-1700-0a1b2c3d.jsonl"), {
        archived("s.orphaned-1700-0a1b2c3d", "1700")
    });
    assert_eq!(is("-h/s.jsonl.superseded-1700"), archived("s.superseded-1700", "1700"));
    for other in [
        "s.jsonl",
        "-h/s.json",
        "-h/.jsonl",
        "-h/._s.jsonl",
        "-h/history.jsonl",
        "-h/s/resume-head.jsonl",
        "-h/s/chat.jsonl",
        "-h/s/subagents/journal.jsonl",
        "-h/s/subagents/workflows/run-1/journal.jsonl",
        "-h/s/subagents/agent-.jsonl",
        "-h/s/subagents/agent-a1.meta.json",
        "-h/s/subagents/.x/agent-a1.jsonl",
        "-h/s/tool-results/agent-a1.jsonl",
        "-h/s/remote-agents/agent-a1.jsonl",
        "-h/memory/subagents/agent-a1.jsonl",
        "-h/s.jsonl.compact.tmp.0a1b2c3d",
        "-h/s.tmp.jsonl",
        "-h/s.jsonl.superseded-",
        "-h/s.jsonl.superseded-12x",
        "-h/.jsonl.superseded-12",
        ".session-aliases/s.jsonl",
        "-h/../s.jsonl",
    ] {
        assert_eq!(is(other), None, "{other}");
    }
    for pruned in ["-h/memory", "-h/s/tool-results", "-h/s/workflows", "-h/.git", ".hidden"] {
        assert!(!harness.descend(Path::new(pruned)), "{pruned}");
    }
}

#[test]
fn an_old_style_sub_agent_belongs_to_the_session_that_its_records_name() {
    let harness = claude_code::ClaudeCode;
    let agent = candidate(&harness, "projects", "-h/agent-a1.jsonl");
    assert!(agent.id_from_records);
    assert_eq!(agent.id, "agent-a1");
    let head = br#"{"type":"x"}
{"sessionId":"s-1","agentId":"a1","cwd":"/w","timestamp":"2026-01-02T03:04:05.678Z"}
{"sessionId":"s-2","cwd":"/v","timestamp":"2027-01-02T03:04:05.678Z"}
"#;
    let facts = harness.facts(&agent, head);
    assert_eq!(facts.id.as_deref(), Some("s-1__agent-a1"));
    assert_eq!(facts.cwd.as_deref(), Some("/w"));
    assert_eq!(facts.started_at.as_deref(), Some("2026-01-02T03:04:05.678Z"));
    assert_eq!(harness.facts(&agent, b"{\"type\":\"x\"}\n").id, None);
    // A session proper is what its name says, whatever its rows say.
    let session = candidate(&harness, "projects", "-h/s-9.jsonl");
    assert!(!session.id_from_records);
    assert_eq!(harness.facts(&session, head).id, None);
}

#[test]
fn hostile_ids_in_records_leave_the_id_of_the_path() {
    let claude = claude_code::ClaudeCode;
    let agent = candidate(&claude, "projects", "-h/agent-a1.jsonl");
    let thread = candidate(&codex::Codex, "sessions", "rollout-2026-01-02T03-04-05-t1.jsonl");
    let long = "x".repeat(129);
    for id in ["../../etc", "a/b", "..", ".x", "a..b", "a\\u0000b", "a__b", "", "é", "a b", &long]
    {
        let row = format!("{{\"sessionId\":\"{id}\"}}\n{{\"sessionId\":\"fine\"}}\n");
        assert_eq!(claude.facts(&agent, row.as_bytes()).id.as_deref(), Some("agent-a1"), "{id}");
        let row = format!(
            "{{\"type\":\"session_meta\",\"payload\":{{\"parent_thread_id\":\"{id}\"}}}}\n"
        );
        assert_eq!(codex::Codex.facts(&thread, row.as_bytes()).id.as_deref(), Some("t1"), "{id}");
    }
}

#[test]
fn p10_codex_names_tell_threads_in_both_trees_compressed_or_not() {
    let harness = codex::Codex;
    let stamp = "2026-11-22T11-24-15";
    let is = |tree: &str, below: &str| {
        classify(&harness, tree, below).map(|found| (found.id, found.standing, found.encoding))
    };
    let (live, gone) = (Standing::Live, Standing::Archived(stamp.to_owned()));
    let some =
        |id: &str, standing: &Standing, encoding| Some((id.to_owned(), standing.clone(), encoding));
    let name = format!("rollout-{stamp}-{UUID}.jsonl");
    let reverted = format!("rollout-{stamp}-{UUID}_r1.jsonl");
    let plain = Encoding::Plain;
    for below in [format!("2026/11/22/{name}"), format!("2020/1/1/{name}"), name.clone()] {
        assert_eq!(is("sessions", &below), some(UUID, &live, plain), "{below}");
        assert_eq!(is("archived_sessions", &below), some(UUID, &gone, plain), "{below}");
        let packed = format!("{below}.zst");
        assert_eq!(is("sessions", &packed), some(UUID, &live, Encoding::Zstd));
        assert_eq!(is("archived_sessions", &packed), some(UUID, &gone, Encoding::Zstd));
    }
    let id = format!("{UUID}_r1");
    assert_eq!(is("sessions", &format!("2026/11/22/{reverted}")), some(&id, &live, plain));
    // As the reference tool has it: no time, or an odd id, and the whole stem is the id.
    assert_eq!(is("sessions", "rollout-x.jsonl"), some("rollout-x", &live, plain));
    let odd = format!("rollout-{stamp}-a b");
    assert_eq!(is("sessions", &format!("{odd}.jsonl")), some(&odd, &live, plain));
    for other in [
        "session-alpha.jsonl",
        "rollout-.jsonl",
        "rollout-x.json",
        "rollout-compress-x.tmp",
        "rollout-x.jsonl.tmp",
        "rollout-x.tmp.jsonl",
        "rollout-x.jsonl.zst.tmp.12",
        "rollout-maintenance.lock",
        ".rollout-materialize-x.jsonl",
        ".tmp/rollout-x.jsonl",
        "2026/11/22/deeper/rollout-x.jsonl",
    ] {
        assert_eq!(is("sessions", other), None, "{other}");
    }
}

fn codex_facts(name: &str, head: &str) -> Facts {
    let thread =
        candidate(&codex::Codex, "sessions", &format!("rollout-2026-01-02T03-04-05-{name}.jsonl"));
    codex::Codex.facts(&thread, head.as_bytes())
}

#[test]
fn codex_sub_agents_are_told_by_their_first_record_and_forks_are_sessions() {
    let spawn = r#"{"timestamp":"2026-01-02T03:04:06Z","type":"session_meta","payload":{"id":"t2","timestamp":"2026-01-02T03:04:05Z","cwd":"/w","thread_source":"subagent","source":{"subagent":{"thread_spawn":{"parent_thread_id":"t1","depth":1}}}}}"#;
    let facts = codex_facts("t2", spawn);
    assert_eq!(facts.id.as_deref(), Some("t1__t2"));
    assert_eq!(facts.cwd.as_deref(), Some("/w"));
    assert_eq!(facts.started_at.as_deref(), Some("2026-01-02T03:04:05Z"));
    let id = |name: &str, meta: &str| {
        codex_facts(name, &format!("{{\"type\":\"session_meta\",\"payload\":{meta}}}\n{spawn}\n"))
            .id
    };
    assert_eq!(id("t2", r#"{"id":"t2","parent_thread_id":"t1"}"#).unwrap(), "t1__t2");
    assert_eq!(id("t2_r", r#"{"id":"t2","parent_thread_id":"t1"}"#).unwrap(), "t1__t2_r");
    // What follows the first record is another thread's, replayed.
    assert_eq!(id("t3", r#"{"id":"t3","forked_from_id":"t2","source":"exec"}"#).unwrap(), "t3");
    assert_eq!(id("t3", r#"{"id":"t3","source":{"subagent":"review"}}"#).unwrap(), "t3");
    assert_eq!(id("t3", r#"{"id":"t3","parent_thread_id":"t3"}"#).unwrap(), "t3");
    assert_eq!(id("t3", r#"{"id":7,"source":[1],"parent_thread_id":{}}"#).unwrap(), "t3");
    assert_eq!(codex_facts("t3", &spawn[..spawn.len() - 2]), Facts::default());
}

#[test]
fn codex_takes_cwd_from_the_turn_context_when_the_first_record_has_none() {
    let head =
        r#"{"timestamp":"2026-01-02T03:04:06Z","type":"turn_context","payload":{"cwd":"/late"}}"#;
    let facts = codex_facts("t1", head);
    assert_eq!((facts.id, facts.cwd.as_deref()), (None, Some("/late")));
    assert_eq!(facts.started_at.as_deref(), Some("2026-01-02T03:04:06Z"));
}

#[test]
fn t8_openclaw_names_tell_the_lives_of_a_session() {
    let harness = openclaw::OpenClaw;
    let is = |below: &str| told(classify(&harness, "agents", below));
    let time = "2026-02-01T10-20-30.123Z";
    assert_eq!(is("main/sessions/s.jsonl"), live("main__s"));
    assert_eq!(is("main/sessions/s-topic-7.jsonl"), live("main__s-topic-7"));
    for ending in ["reset", "deleted"] {
        let ended = format!("main/sessions/s.jsonl.{ending}.{time}");
        assert_eq!(is(&ended), archived("main__s", time));
        let packed = classify(&harness, "agents", format!("{ended}.zst")).unwrap();
        assert_eq!(packed.encoding, Encoding::Zstd);
        assert_eq!(told(Some(packed)), archived("main__s", time));
    }
    for other in [
        "main/sessions/sessions.json".to_owned(),
        "main/sessions/s.trajectory.jsonl".to_owned(),
        format!("main/sessions/s.trajectory.jsonl.deleted.{time}"),
        "main/sessions/s.trajectory-path.json".to_owned(),
        format!("main/sessions/s.checkpoint.{UUID}.jsonl"),
        format!("main/sessions/s.checkpoint.{UUID}.jsonl.reset.{time}"),
        "main/sessions/s.jsonl.lock".to_owned(),
        "main/sessions/s.jsonl.tmp".to_owned(),
        format!("main/sessions/s.jsonl.bak.{time}"),
        format!("main/sessions/s.jsonl.reset.{time}.zst.tmp"),
        "main/sessions/s.jsonl.reset.".to_owned(),
        "main/sessions/s.jsonl.reset.x".to_owned(),
        "main/sessions/.jsonl".to_owned(),
        "main/sessions/cold/s.jsonl".to_owned(),
        "main/agent/s.jsonl".to_owned(),
        "main/s.jsonl".to_owned(),
        ".main/sessions/s.jsonl".to_owned(),
    ] {
        assert_eq!(is(&other), None, "{other}");
    }
}

#[test]
fn openclaw_facts_come_from_the_header() {
    let harness = openclaw::OpenClaw;
    let session = candidate(&harness, "agents", "main/sessions/s.jsonl");
    let head = br#"{"type":"session","version":3,"id":"s","timestamp":"2026-01-02T03:04:05.678Z","cwd":"/w"}
{"type":"message","timestamp":1795347821285,"cwd":"/other"}
"#;
    let facts = harness.facts(&session, head);
    assert_eq!(facts.id, None);
    assert_eq!(facts.cwd.as_deref(), Some("/w"));
    assert_eq!(facts.started_at.as_deref(), Some("2026-01-02T03:04:05.678Z"));
}

#[test]
fn t20_t21_garbage_before_the_facts_does_not_hide_them() {
    let harness = claude_code::ClaudeCode;
    let session = candidate(&harness, "projects", "-h/s.jsonl");
    let good =
        br#"{"type":"user","cwd":"/w","timestamp":"2026-01-02T03:04:05Z","message":{"content":"#;
    let mut head = b"\xef\xbb\xbf{\"type\":\"unheard-of\",\"cwd\":7,\"timestamp\":[]}\r\n".to_vec();
    head.extend_from_slice(b"not json\n[\"/array\",\"x\",\"y\"]\n{\"cwd\":\"/torn\n\n\0\0\0\n");
    head.extend_from_slice(b"{\"cwd\":\"\",\"timestamp\":\"yesterday \\u001b[2J\"}\n");
    head.extend_from_slice(&[0; 4096]);
    head.extend_from_slice(good);
    head.extend_from_slice(b"\"\xff\xfe \\ud800\"}}\n{\"cwd\":\"/tor");
    let facts = harness.facts(&session, &head);
    assert_eq!(facts.cwd.as_deref(), Some("/w"));
    assert_eq!(facts.started_at.as_deref(), Some("2026-01-02T03:04:05Z"));
    assert_eq!(harness.facts(&session, b""), Facts::default());
    let deep = "[".repeat(200_000);
    assert_eq!(harness.facts(&session, format!("{{\"cwd\":{deep}").as_bytes()), Facts::default());
}

#[test]
fn a_working_directory_keeps_odd_characters_and_has_a_limit() {
    let harness = claude_code::ClaudeCode;
    let session = candidate(&harness, "projects", "-h/s.jsonl");
    let cwd =
        |json: &str| harness.facts(&session, format!("{{\"cwd\":\"{json}\"}}").as_bytes()).cwd;
    assert_eq!(cwd("/a b/\\u001b[31m\\n/ü").unwrap(), "/a b/\u{1b}[31m\n/ü");
    // Cut, and not through the middle of a character: a rule that excludes /x must still match.
    let cut = cwd(&format!("/x/{}", "ü".repeat(3000))).unwrap();
    assert_eq!(cut.len(), 4095);
    assert!(cut.starts_with("/x/üü"));
}

#[test]
fn a_single_line_without_a_newline_counts_when_it_is_whole() {
    let harness = claude_code::ClaudeCode;
    let session = candidate(&harness, "projects", "-h/s.jsonl");
    assert_eq!(harness.facts(&session, br#"{"cwd":"/w"}"#).cwd.as_deref(), Some("/w"));
    assert_eq!(harness.facts(&session, br#"{"cwd":"/w""#).cwd, None);
}

#[test]
fn names_that_are_not_utf_8_give_different_ids() {
    let harness = claude_code::ClaudeCode;
    let named = |bytes: &[u8]| {
        let name = OsString::from_vec([bytes, b".jsonl"].concat());
        classify(&harness, "projects", Path::new("-h").join(name)).unwrap().id
    };
    let names: [&[u8]; 5] =
        [b"a\xff", b"a\xfe", "a\u{fffd}".as_bytes(), "a\u{fffd}ff".as_bytes(), b"a"];
    let ids: std::collections::BTreeSet<String> = names.iter().map(|name| named(name)).collect();
    assert_eq!(ids.len(), names.len(), "{ids:?}");
    assert_eq!(named(b"a\xff"), "a\u{fffd}ff");
}

#[test]
fn a_directory_is_found_in_later_records_and_not_in_those_of_another_session() {
    let turn = br#"{"type":"turn_context","payload":{"cwd":"/own"}}"#;
    let meta = br#"{"type":"session_meta","payload":{"id":"a","cwd":"/meta"}}"#;
    let both = [&meta[..], b"\n", turn, b"\n"].concat();
    assert_eq!(codex::Codex.cwd(&both, true).as_deref(), Some("/meta"));
    assert_eq!(codex::Codex.cwd(&both, false).as_deref(), Some("/own"));
    let row = b"{\"type\":\"summary\"}\n{\"cwd\":\"/w\"}\n{\"cwd\":\"/later\"}\n";
    assert_eq!(claude_code::ClaudeCode.cwd(row, false).as_deref(), Some("/w"));
    assert_eq!(openclaw::OpenClaw.cwd(row, false), None);
    let header = br#"{"type":"session","cwd":"/w"}"#;
    assert_eq!(openclaw::OpenClaw.cwd(header, true).as_deref(), Some("/w"));
}

#[test]
fn every_harness_has_a_name_of_its_own_and_puts_it_on_what_it_finds() {
    let names: Vec<_> = all().iter().map(|harness| harness.name()).collect();
    assert_eq!(names, ["claude-code", "codex", "openclaw", "hermes"]);
    for harness in all() {
        for root in harness.roots(&env("/nowhere", &[])) {
            assert_eq!(root.harness, harness.name());
            assert!(harness.descend(Path::new("")), "a root is entered");
            assert_eq!(harness.classify(&root, &root.path), None);
            assert_eq!(harness.classify(&root, Path::new("/elsewhere/x.jsonl")), None);
        }
    }
}
