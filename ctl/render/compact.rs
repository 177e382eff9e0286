//! `compact`: a bar on standard error while it works, a line on standard output when it is done.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracecraft::api::Progress;

use crate::text;

/// The bar, or nothing where there is no terminal.
pub(crate) struct Meter(Option<ProgressBar>);

impl Meter {
    /// Drawn when the first progress comes.
    pub(crate) fn new(visible: bool) -> Meter {
        if !visible {
            return Meter(None);
        }
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template(
            "merging {wide_bar} {binary_bytes} of {binary_total_bytes}",
        )
        .expect("the template has only known names");
        bar.set_style(style);
        Meter(Some(bar))
    }

    /// So much of so much.
    pub(crate) fn at(&self, done_bytes: u64, total_bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.set_length(total_bytes);
            bar.set_position(done_bytes);
        }
    }

    /// Takes the bar away, so that what follows has the line.
    pub(crate) fn end(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// The last line of the stream in words.
pub(crate) fn outcome(event: &Progress) -> String {
    match event {
        Progress::Done { parts_before, parts_after, merged_bytes: 0 }
            if parts_before == parts_after =>
        {
            format!("nothing to merge: {}\n", text::count(*parts_after, "part", "parts"))
        }
        Progress::Done { parts_before, parts_after, merged_bytes } => format!(
            "merged {} from {} into {}\n",
            text::bytes(*merged_bytes),
            text::count(*parts_before, "part", "parts"),
            text::count(*parts_after, "part", "parts"),
        ),
        Progress::Working { .. } | Progress::Failed { .. } => String::new(),
    }
}
