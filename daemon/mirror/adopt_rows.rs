//! Continuing a session that is rows of a database where the store knows it and the state, or the ledger, does not.
//!
//! What is stored is a log whose last line for each id wins. It is folded, line by line: where a line is what its row says now,
//! that state is captured; where it is not, the row is captured again. So nothing is sent twice that did not change, whichever
//! of the two programs wrote it and whichever rules its secrets were replaced by.

use super::Engine;
use crate::part::SessionKey;

impl Engine {
    /// Asks the store what is captured of a session whose ledger is lost.
    pub(super) fn relearn(&mut self, key: &SessionKey) {
        self.next_generation(key, "which of its rows were captured was lost");
    }
}
