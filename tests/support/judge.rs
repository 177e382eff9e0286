//! The verdict: what the oracle read, against a model of what the sources held.
//!
//! Owns the comparison of generations; knows neither files nor processes. A verdict is a list of complaints, each naming the
//! session and the byte, empty when all is well.

use super::oracle::{Bucket, Stored};
use super::planted::common_prefix;

/// What one session's source held, redacted: one content for each life of the source, the present one last.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) harness: &'static str,
    pub(crate) id: String,
    pub(crate) generations: Vec<Vec<u8>>,
    /// The source is no longer there: what was not captured in time is lost to everyone.
    pub(crate) gone: bool,
}

/// Complaints that hold at any instant, also between a kill and the restart: the format is kept, both readers see every
/// record, and every generation is a record-aligned piece of what its source held.
pub(crate) fn interrupted(bucket: &Bucket, sources: &[Source]) -> Vec<String> {
    let mut complaints = bucket.faults();
    for source in sources {
        let stored = bucket.generations(source.harness, &source.id);
        complaints.extend(generations(source, &stored, false).err());
    }
    complaints.extend(strangers(bucket, sources));
    complaints
}

/// Complaints about a bucket whose daemon says that everything is stored: nothing outstanding, every present source complete,
/// and exactly as many generations as lives.
pub(crate) fn at_rest(bucket: &Bucket, sources: &[Source]) -> Vec<String> {
    let mut complaints = bucket.faults_at_rest();
    for source in sources {
        let stored = bucket.generations(source.harness, &source.id);
        if let Err(complaint) = generations(source, &stored, true) {
            complaints.push(complaint);
        } else if stored.len() != source.generations.len() {
            complaints.push(format!(
                "{}/{}: {} generations stored, its source had {} lives",
                source.harness,
                source.id,
                stored.len(),
                source.generations.len()
            ));
        }
    }
    complaints.extend(strangers(bucket, sources));
    complaints
}

/// Turns a verdict into something that a test can wait for or assert.
pub(crate) fn verdict(complaints: Vec<String>) -> Result<(), String> {
    match complaints.len() {
        0 => Ok(()),
        count => Err(format!("{count} complaints:\n{}", complaints[..count.min(20)].join("\n"))),
    }
}

fn strangers(bucket: &Bucket, sources: &[Source]) -> Vec<String> {
    let known = |stored: &&Stored| {
        sources
            .iter()
            .any(|source| source.harness == stored.harness && source.id == stored.base().0)
    };
    let strangers = bucket.sessions.iter().filter(|stored| !known(stored));
    strangers
        .map(|stored| format!("{}/{}: no source has this id", stored.harness, stored.id))
        .collect()
}

/// Every stored generation is a record-aligned piece from the start of one life of the source, in the order of the lives;
/// `complete` asks that the last one is all of the last life, if that is still there.
fn generations(source: &Source, stored: &[&Stored], complete: bool) -> Result<(), String> {
    let name = format!("{}/{}", source.harness, source.id);
    for (expected, generation) in (1..).zip(stored) {
        if generation.base().1 != expected {
            return Err(format!("{name}: generation {expected} is missing"));
        }
    }
    if stored.is_empty() {
        let lost =
            complete && !source.gone && source.generations.last().is_some_and(|g| !g.is_empty());
        return if lost { Err(format!("{name}: not in the bucket, byte 0")) } else { Ok(()) };
    }
    if assign(source, stored, complete, 0) {
        return Ok(());
    }
    Err(format!("{name}: {}", closest(source, stored, complete)))
}

/// Whether the stored generations can be laid over the lives from `first` on, in order.
fn assign(source: &Source, stored: &[&Stored], complete: bool, first: usize) -> bool {
    let Some((generation, rest)) = stored.split_first() else { return true };
    (first..source.generations.len()).any(|life| {
        let must_be_whole = complete && rest.is_empty() && !source.gone;
        let last_life = life + 1 == source.generations.len();
        let fits = match must_be_whole {
            true => last_life && generation.by_manifest == source.generations[life],
            false => is_record_prefix(&generation.by_manifest, &source.generations[life]),
        };
        fits && assign(source, rest, complete, life + 1)
    })
}

fn is_record_prefix(stored: &[u8], life: &[u8]) -> bool {
    life.starts_with(stored)
        && (stored.len() == life.len() || stored.last().is_none_or(|b| *b == b'\n'))
}

/// Where the stored generations come closest to the lives, for a person.
fn closest(source: &Source, stored: &[&Stored], complete: bool) -> String {
    let mut lines = Vec::new();
    for generation in stored {
        let content = &generation.by_manifest;
        let shared = source.generations.iter().map(|life| common_prefix(content, life));
        let (life, same) = shared.enumerate().max_by_key(|(_, same)| *same).unwrap_or((0, 0));
        let whole = source.generations.get(life).map_or(0, Vec::len);
        lines.push(format!(
            "generation {} ({} bytes) agrees with life {} of {} ({whole} bytes) up to stored byte {same}",
            generation.base().1,
            content.len(),
            life + 1,
            source.generations.len(),
        ));
    }
    if complete {
        lines.push(format!("the last life must be stored whole (gone: {})", source.gone));
    }
    lines.join("; ")
}
