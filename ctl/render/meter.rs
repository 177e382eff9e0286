//! A bar on standard error while the daemon works, for a person who waits.
//!
//! Owns drawing and taking away; what is counted is the caller's.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The bar, or nothing where there is no terminal.
pub(crate) struct Meter(Option<ProgressBar>);

impl Meter {
    /// Drawn when the first progress comes, as the template says, with `msg` as it is at the beginning.
    pub(crate) fn new(visible: bool, template: &str, message: String) -> Meter {
        if !visible {
            return Meter(None);
        }
        let target = ProgressDrawTarget::stderr();
        let bar = ProgressBar::with_draw_target(Some(0), target).with_message(message);
        let style = ProgressStyle::with_template(template)
            .expect("templates are our own and have only known names");
        bar.set_style(style);
        Meter(Some(bar))
    }

    /// So much of so much.
    pub(crate) fn at(&self, done: u64, total: u64) {
        if let Some(bar) = &self.0 {
            bar.set_length(total);
            bar.set_position(done);
        }
    }

    /// What the template shows as `msg`.
    pub(crate) fn say(&self, message: String) {
        if let Some(bar) = &self.0 {
            bar.set_message(message);
        }
    }

    /// Has something printed while the bar is away.
    pub(crate) fn aside<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.0 {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Takes the bar away, so that what follows has the line.
    pub(crate) fn end(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
