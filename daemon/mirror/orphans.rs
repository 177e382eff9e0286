//! Parts in the outbox whose source is nowhere: sent all the same, in the session that they are of.
//!
//! What of a lost state waits in the outbox is adopted with its source, if that turns up; what is left when everything that was
//! found has its place is adopted by itself. Refuses to know what is in a part.

use super::adopt::{AdoptError, Adopted};
use super::{Done, Engine, chain};
use crate::outbox::Waiting;
use crate::part::SessionKey;

impl Engine {
    /// Parts in the outbox whose source did not turn up: once all that was found is placed, they are adopted by themselves.
    pub(super) fn start_orphans(&mut self) {
        if self.orphans.is_empty() || self.scan_done < self.orphans_scan || !self.nothing_to_place()
        {
            return;
        }
        if self.orphans_started || !self.store_is_open() {
            return;
        }
        let Some(base) = self.orphans.first().map(|w| w.key.with_generation(1)) else { return };
        if !self.folders_known(&base) {
            return;
        }
        // All generations together: the next one has to get a number that none of them has.
        let generations = self.generations(&base);
        let same = |key: &SessionKey| key.harness() == base.harness() && key.base() == base.id();
        let (own, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.orphans).into_iter().partition(|w| same(&w.key));
        self.orphans = rest;
        if self.newest(&base).is_some() {
            return; // Adoption has looked at them: what did not fit was stored, or never committed.
        }
        self.orphans_started = true;
        self.adopting.insert(base.clone());
        let adopter = self.adopter();
        self.jobs.push(Box::pin(async move {
            let adopted = adopter.adopt_orphans(generations, own).await;
            Done::Orphans(base, adopted)
        }));
    }

    pub(super) fn adopted_orphans(
        &mut self,
        key: &SessionKey,
        adopted: Result<Adopted, AdoptError>,
    ) {
        self.orphans_started = false;
        self.adopting.remove(key);
        match adopted {
            Ok(adopted) => {
                if !self.take_in(adopted) {
                    self.list_orphans(key);
                }
            }
            Err(AdoptError::Outbox(error)) => {
                self.outbox_unusable(&error);
                self.list_orphans(key);
            }
            Err(AdoptError::Store(failure)) => {
                self.list_orphans(key);
                self.adoption_failed(key, failure);
            }
            // There is no source that could fail.
            Err(AdoptError::Source(_) | AdoptError::Changed) => self.list_orphans(key),
        }
    }

    pub(super) fn outbox_unusable(&mut self, error: &std::io::Error) {
        let path = self.settings.state_dir.join("outbox").display().to_string();
        self.problem("outbox_unreadable", &path, &chain(error), Some("check the disk"));
    }

    /// Parts that could not be adopted stay in the outbox and are asked for again.
    fn list_orphans(&mut self, key: &SessionKey) {
        if let Ok(all) = self.outbox.waiting(&*self.tools.disk) {
            let same = |w: &Waiting| w.key.with_generation(1) == *key;
            self.orphans.extend(all.into_iter().filter(same));
        }
        self.orphans_scan = self.scans + 1;
    }
}
