//! `compact`: a bar on standard error while it works, a line on standard output when it is done.

use tracecraft::api::Progress;

use crate::text;

/// What the bar shows while it works.
pub(crate) const METER: &str = "merging {wide_bar} {binary_bytes} of {binary_total_bytes}";

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
