//! What has to be true of a store when the dust has settled, asked of it as two kinds of readers would.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::others::Others;
use super::world::{SECRET_BYTES, Source, World};
use crate::mirror::manifest::{range_of, replay_order};
use crate::part::{Manifest, PartName, SessionKey, hex};
use crate::redact::{Counts, Redactor};

/// What a reader found of one generation.
struct Generation {
    key: SessionKey,
    content: Vec<u8>,
    /// Whether a part says no range: the reference tool merged it, and nothing tells any more what was in it.
    merged_blindly: bool,
}

/// Checks everything; the message says what is wrong with which session.
pub(super) fn check(world: &World, second: Option<&World>) -> Result<(), String> {
    let objects = world.objects();
    let mut sessions: BTreeMap<String, Vec<Generation>> = BTreeMap::new();
    let mut keys: Vec<SessionKey> = objects.keys().filter_map(|key| session_of(key)).collect();
    keys.sort_by_key(|key| (key.base().to_owned(), key.generation()));
    keys.dedup();
    for key in keys {
        let one = read(world, &objects, &key).map_err(|what| format!("{key}: {what}"))?;
        sessions.entry(key.base().to_owned()).or_default().push(one);
    }
    for (number, source) in world.sources.iter().enumerate() {
        let generations = sessions.remove(&format!("s{number}")).unwrap_or_default();
        let other = second.and_then(|second| match world.others {
            Others::Sharing => Some(source),
            _ => second.sources.get(number),
        });
        // What the reference tool merged has no digest, and the ones that its parts had are gone with their entries. After a lost
        // state it is compared with the source, byte for byte but for what is behind a marker, which is nowhere to compare with:
        // our rules made of it are no evidence, since that tool has others, and what it stored shall not be stored twice. So a
        // change of one secret into something else is the one that nobody can see, in such a generation only.
        let blind = world.others == Others::Reference && world.damaged;
        check_session(&world.redactor, source, other, &generations, blind)
            .map_err(|what| format!("s{number}: {what}"))?;
    }
    // Sources that only the second recorder has.
    let second = second.filter(|_| world.others == Others::Diverging);
    for (number, source) in second.iter().flat_map(|w| w.sources.iter().enumerate()) {
        if let Some(generations) = sessions.remove(&format!("s{number}")) {
            check_session(&world.redactor, source, None, &generations, false)
                .map_err(|what| format!("s{number} of the second: {what}"))?;
        }
    }
    if let Some(stranger) = sessions.keys().next() {
        return Err(format!("{stranger} is no session"));
    }
    check_history(world)
}

fn session_of(key: &str) -> Option<SessionKey> {
    let (folder, _) = key.strip_prefix("sessions/")?.rsplit_once('/')?;
    folder.parse().ok()
}

/// Reads a generation by its manifest, then by listing alone, and wants both to agree.
fn read(
    world: &World,
    objects: &BTreeMap<String, Vec<u8>>,
    key: &SessionKey,
) -> Result<Generation, String> {
    let manifest = match objects.get(&key.manifest_key()) {
        Some(bytes) => Manifest::parse(key, bytes).map_err(|e| e.to_string())?,
        // State and source were lost between the first part and its manifest: nobody is left to write one, and readers list.
        None => Manifest::new(key),
    };
    let mut by_manifest = Vec::new();
    let mut at = Some(0);
    for part in &manifest.parts {
        let name = part.name();
        let bytes = objects.get(&key.part_key(&name)).ok_or(format!("{name} is missing"))?;
        let digest = hex(&Sha256::digest(bytes));
        // The reference tool names its merged parts at random.
        if part.sha256.as_ref().is_some_and(|s| *s != digest || !digest.starts_with(&part.uuid)) {
            return Err(format!("{name} is not what its digest says"));
        }
        if bytes.len() as u64 != part.uploaded_bytes {
            return Err(format!("{name} has another size than its manifest says"));
        }
        // A range is unknown only where the manifest was rebuilt after its source had changed.
        match (part.cursor_range, at) {
            (Some([start, _]), Some(at)) if start != at => {
                return Err(format!("{name} starts at {start}, the one before ends at {at}"));
            }
            (range, _) => at = range.map(|[_, end]| end),
        }
        by_manifest.extend(bytes);
    }
    let prefix = key.prefix();
    let listed: Vec<(PartName, u64)> = objects
        .iter()
        .filter_map(|(name, bytes)| Some((name.strip_prefix(&prefix)?.parse().ok()?, bytes)))
        .map(|(name, bytes)| (name, bytes.len() as u64))
        .collect();
    let mut end = manifest.end();
    for (name, _) in replay_order(&manifest, &listed).iter().skip(manifest.parts.len()) {
        let object = key.part_key(name);
        let note = world.memory_store.as_ref().and_then(|store| store.note(&object));
        let range = range_of(note.as_deref());
        if range.is_some_and(|[start, _]| end.is_some_and(|end| end != start)) {
            break;
        }
        end = range.map(|[_, end]| end);
        by_manifest.extend(&objects[&object]);
    }
    let listed: Vec<(&String, &Vec<u8>)> = objects
        .range(key.prefix()..)
        .take_while(|(name, _)| name.starts_with(&key.prefix()))
        .filter(|(name, _)| !name.ends_with("meta.json"))
        .collect();
    let by_list: Vec<u8> = listed.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
    // A compaction whose state and source were both lost stays outstanding: nobody is left to finish it.
    let lost = world.sources.iter().any(|source| {
        !source.exists && source.path.file_stem().and_then(|stem| stem.to_str()) == Some(key.base())
    });
    // The state was lost, and with it what was about to be cleared away; or the reference tool merged without a range what
    // stands before a part that was not named yet, which is then captured again: readers by listing see its bytes twice.
    // Of two recorders, one that was killed may leave a stray for good: its bytes are in its own generation, too.
    let two = matches!(world.others, Others::Sharing | Others::Diverging);
    let twice = two || world.damaged && world.others != Others::Nobody;
    if by_list != by_manifest && !((lost || twice) && by_list.len() > by_manifest.len()) {
        let names: Vec<&str> = listed.iter().filter_map(|(n, _)| n.rsplit('/').next()).collect();
        return Err(format!(
            "by listing {} bytes ({names:?}), by manifest {}",
            by_list.len(),
            by_manifest.len()
        ));
    }
    for (name, _) in listed {
        let name = name.rsplit('/').next().unwrap_or_default();
        name.parse::<PartName>().map_err(|e| e.to_string())?;
    }
    let merged_blindly = manifest.parts.iter().any(|part| part.cursor_range.is_none());
    Ok(Generation { key: key.clone(), content: by_manifest, merged_blindly })
}

fn check_session(
    redactor: &Redactor,
    source: &Source,
    other: Option<&Source>,
    generations: &[Generation],
    blind: bool,
) -> Result<(), String> {
    // Two writers part once, and again when both went on to the same number; they never drive each other on.
    let rewrites = source.rewrites + other.map_or(0, |other| other.rewrites + 6);
    if generations.len() > 1 + rewrites as usize {
        return Err(format!("{} generations after {rewrites} rewrites", generations.len()));
    }
    let all = source.held.iter().chain(other.iter().flat_map(|other| &other.held));
    let held: Vec<Vec<u8>> = all.map(|content| redact(redactor, content)).collect();
    for source in [Some(source), other].into_iter().flatten() {
        check_kept(redactor, source, generations, other.is_some())?;
    }
    let mut from = 0;
    for generation in generations {
        let content = &generation.content;
        let whole = content.is_empty() || content.ends_with(b"\n") || held.contains(content);
        let at = held.iter().skip(from).position(|all| all.starts_with(content));
        match at {
            // The order of two writers' generations tells nothing of the order of what they held.
            Some(_) if whole && other.is_some() => {}
            Some(at) if whole => from += at,
            None if blind
                && generation.merged_blindly
                && source.held.iter().any(|raw| is_but_for_secrets(content, raw)) => {}
            _ => {
                return Err(format!(
                    "generation {} holds what its source never held ({} bytes, whole: {whole}): {:?}",
                    generation.key.generation(),
                    content.len(),
                    String::from_utf8_lossy(content),
                ));
            }
        }
    }
    Ok(())
}

/// Whether stored content is the beginning of what a source held, record by record, where a marker may stand for any bytes
/// that are as many as a secret of this model has.
fn is_but_for_secrets(content: &[u8], raw: &[u8]) -> bool {
    const MARKER: &[u8] = b"[REDACTED:aws_access_key]";
    let mut records = raw.split_inclusive(|byte| *byte == b'\n');
    content.split_inclusive(|byte| *byte == b'\n').all(|stored| {
        let Some(record) = records.next() else { return false };
        match memchr::memmem::find(stored, MARKER) {
            None => record == stored,
            Some(at) => {
                let (before, after) = (&stored[..at], &stored[at + MARKER.len()..]);
                record.len() == before.len() + SECRET_BYTES + after.len()
                    && record.starts_with(before)
                    && record.ends_with(after)
            }
        }
    })
}

/// What was made safe is there, and so is what the source holds now.
fn check_kept(
    redactor: &Redactor,
    source: &Source,
    generations: &[Generation],
    shared: bool,
) -> Result<(), String> {
    let flushed = &source.flushed;
    if !flushed.is_empty() && !generations.iter().any(|g| g.content.starts_with(flushed)) {
        return Err("what a flush had made safe is gone".into());
    }
    if source.exists && source.held.last().is_some_and(|content| content.contains(&b'\n')) {
        let now = &redact(redactor, source.held.last().ok_or("never held anything")?);
        let complete = now.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        // What one writer holds may be the beginning of what the other one holds.
        let is_now = |g: &&Generation| g.content.starts_with(&now[..complete]);
        let newest = generations.iter().find(|g| shared && is_now(g)).or(generations.last());
        let newest = newest.ok_or("not stored at all")?;
        let more = shared && newest.content.starts_with(&now[..complete]);
        if newest.content != now[..complete] && newest.content != *now && !more {
            return Err(format!(
                "the newest of {} generations has {} of {} bytes, and not these: stored {:?} source {:?}",
                generations.len(),
                newest.content.len(),
                complete,
                String::from_utf8_lossy(&newest.content),
                String::from_utf8_lossy(&now[..complete]),
            ));
        }
    }
    Ok(())
}

/// Rule 2: a key never has two contents, and the store was never asked to hold a secret.
fn check_history(world: &World) -> Result<(), String> {
    let Some(store) = &world.memory_store else { return Ok(()) };
    for (key, contents) in store.history() {
        if !key.ends_with("meta.json") && contents.len() > 1 {
            return Err(format!("{key} had {} contents", contents.len()));
        }
        // A whole one: a truncation may leave the beginning of one, which is no secret any more.
        let secret = |w: &[u8]| w.starts_with(b"AKIA") && w[4..].iter().all(u8::is_ascii_digit);
        if contents.iter().any(|bytes| bytes.windows(20).any(secret)) {
            return Err(format!("{key} held a secret"));
        }
    }
    Ok(())
}

pub(super) fn redact(redactor: &Redactor, content: &[u8]) -> Vec<u8> {
    let mut redacted = Vec::new();
    redactor.redact(&[], content, &mut redacted, &mut Counts::new());
    redacted
}
