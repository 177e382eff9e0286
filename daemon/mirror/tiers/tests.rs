//! The policy alone: tables, and long lives of random sessions with their bounds.

use super::*;

/// A session that only grows, and what was done to it.
struct Grown {
    tiers: Tiers,
    pieces: Vec<Piece>,
    /// How often the bytes of each piece were written.
    writes: Vec<u32>,
    bytes: u64,
    rewritten: u64,
    merges: u64,
    inputs: u64,
    numbers: u64,
}

impl Grown {
    fn new(tiers: Tiers) -> Grown {
        let (pieces, writes) = (Vec::new(), Vec::new());
        Grown { tiers, pieces, writes, bytes: 0, rewritten: 0, merges: 0, inputs: 0, numbers: 0 }
    }

    fn add(&mut self, bytes: u64) {
        self.pieces.push(Piece { bytes, span: 1, fixed: false });
        self.writes.push(1);
        self.bytes += bytes;
        self.numbers += 1;
    }

    /// Merges once; `false`: there was nothing to merge.
    fn merge(&mut self) -> bool {
        let Some(run) = self.tiers.run(&self.pieces) else { return false };
        assert!(run.len() >= 2 && run.len() <= self.tiers.inputs_max, "{run:?}");
        let inputs = &self.pieces[run.clone()];
        assert!(inputs.iter().all(|piece| !self.tiers.stays(piece)), "{inputs:?}");
        let bytes = inputs.iter().map(|piece| piece.bytes).sum();
        assert!(bytes <= self.tiers.bytes_max, "{bytes} bytes");
        let span = inputs.iter().map(|piece| piece.span).sum();
        let writes = 1 + self.writes[run.clone()].iter().max().unwrap();
        self.rewritten += bytes;
        self.merges += 1;
        self.inputs += run.len() as u64;
        self.pieces.splice(run.clone(), [Piece { bytes, span, fixed: false }]);
        self.writes.splice(run, [writes]);
        true
    }

    fn merge_all(&mut self) {
        while self.merge() {}
    }

    /// What ARCHITECTURE.md says of a session that nothing is left to be merged of.
    fn check(&self) {
        let Tiers { fan_in, .. } = self.tiers;
        let tiers = u64::from(self.numbers.max(1).ilog(fan_in));
        let full = self.pieces.iter().filter(|piece| self.tiers.stays(piece)).count() as u64;
        let most = 2 * full + (fan_in - 1) * (tiers + 1);
        let parts = self.pieces.len() as u64;
        assert!(parts <= most, "{parts} parts of {} numbers, {full} full", self.numbers);
        let written = u64::from(*self.writes.iter().max().unwrap());
        assert!(written <= 1 + tiers + 1, "written {written} times in {tiers} tiers");
        assert_eq!(self.pieces.iter().map(|piece| piece.bytes).sum::<u64>(), self.bytes);
        assert_eq!(self.pieces.iter().map(|piece| piece.span).sum::<u64>(), self.numbers);
    }
}

fn pieces(of: &[(u64, u64)]) -> Vec<Piece> {
    of.iter().map(|(bytes, span)| Piece { bytes: *bytes, span: *span, fixed: false }).collect()
}

#[test]
fn a_run_is_merged_when_there_are_enough_of_a_tier() {
    let tiers = Tiers { fan_in: 4, bytes_max: 1000, inputs_max: 100, live_inputs_min: 0 };
    type Case = (&'static [(u64, u64)], Option<Range<usize>>);
    let cases: &[Case] = &[
        (&[], None),
        (&[(10, 1)], None),
        (&[(10, 1); 3], None),
        (&[(10, 1); 4], Some(0..4)),
        // All at once, and not four by four.
        (&[(10, 1); 40], Some(0..40)),
        (&[(40, 4), (10, 1), (10, 1), (10, 1)], None),
        (&[(40, 4), (10, 1), (10, 1), (10, 1), (10, 1)], Some(1..5)),
        // With the fourth of them the next tier is reached, so that those before go along.
        (&[(40, 4), (40, 4), (40, 4), (10, 1), (10, 1), (10, 1), (10, 1)], Some(0..7)),
        // What was merged by hand is large already.
        (&[(400, 400), (10, 1), (10, 1), (10, 1)], None),
        (&[(400, 400), (10, 1), (10, 1), (10, 1), (10, 1)], Some(1..5)),
        // Full parts stay; what is before one cannot grow any more.
        (&[(500, 1), (500, 1), (700, 1), (2000, 1)], None),
        (&[(10, 1), (20, 1), (500, 1)], Some(0..2)),
        (&[(10, 1), (500, 1), (10, 1), (10, 1), (500, 1)], Some(2..4)),
        // A merged part has a largest size.
        (&[(400, 1), (400, 1), (400, 1), (400, 1)], Some(0..2)),
    ];
    for (of, wanted) in cases {
        assert_eq!(tiers.run(&pieces(of)), *wanted, "{of:?}");
    }
}

#[test]
fn what_is_another_writers_is_never_merged() {
    let tiers = Tiers { fan_in: 2, bytes_max: 1000, inputs_max: 100, live_inputs_min: 0 };
    let mut of = pieces(&[(10, 1); 6]);
    of[2].fixed = true;
    assert_eq!(tiers.run(&of), Some(0..2));
    of.splice(0..2, pieces(&[(20, 2)]));
    assert_eq!(tiers.run(&of), Some(2..5));
}

#[test]
fn a_long_session_of_tiny_parts_has_tens_of_parts_and_few_rewrites() {
    let mut grown = Grown::new(Tiers::default());
    for number in 0..100_000u64 {
        grown.add(200 + number % 800);
        if number % 16 == 0 {
            grown.merge_all();
        }
    }
    grown.merge_all();
    grown.check();
    let written = grown.rewritten as f64 / grown.bytes as f64;
    println!(
        "{} parts of 100,000; {} MiB, each byte rewritten {written:.2} times; {} merges of {} inputs",
        grown.pieces.len(),
        grown.bytes >> 20,
        grown.merges,
        grown.inputs
    );
    assert!(grown.pieces.len() <= 75, "{} parts", grown.pieces.len());
    assert!(written <= 5.0, "{written}");
    assert!(grown.inputs as f64 <= 100_000.0 * 1.07 * 2.0, "{} inputs", grown.inputs);
}

#[test]
fn a_backlog_of_parts_is_merged_in_few_steps() {
    let mut grown = Grown::new(Tiers::default());
    (0..100_000).for_each(|_| grown.add(700));
    grown.merge_all();
    grown.check();
    let written = grown.rewritten as f64 / grown.bytes as f64;
    assert!(written <= 3.0, "each byte rewritten {written} times");
    assert!(grown.pieces.len() <= 20, "{} parts", grown.pieces.len());
}

#[test]
fn any_session_stays_within_its_bounds() {
    for seed in 0..400 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let tiers = Tiers {
            fan_in: rng.u64(2..20),
            bytes_max: rng.u64(2..20_000),
            inputs_max: 1000, // Fewer than the fan-in would be none.
            live_inputs_min: 0,
        };
        let mut grown = Grown::new(tiers);
        let largest = rng.u64(1..=2 * tiers.bytes_max);
        for _ in 0..rng.usize(1..2000) {
            // Mostly small ones, now and then a large one.
            let most = if rng.u8(..10) == 0 { largest } else { 1 + largest / 50 };
            grown.add(rng.u64(1..=most));
            match rng.u8(..4) {
                0 => grown.merge_all(),
                1 => drop(grown.merge()),
                _ => {}
            }
        }
        grown.merge_all();
        grown.check();
    }
}

#[test]
fn whatever_parts_a_session_has_merging_them_comes_to_an_end() {
    for seed in 0..2000 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (fan_in, inputs_max) = (rng.u64(2..8), rng.usize(8..40));
        let tiers = Tiers { fan_in, bytes_max: 5000, inputs_max, live_inputs_min: 0 };
        let mut grown = Grown::new(tiers);
        for _ in 0..rng.usize(1..300) {
            let (bytes, span) = (rng.u64(0..3000), 1 << rng.u64(0..12));
            grown.pieces.push(Piece { bytes, span, fixed: rng.u8(..30) == 0 });
            grown.writes.push(1);
        }
        let mut left = grown.pieces.len();
        while grown.merge() {
            assert!(grown.pieces.len() < left);
            left = grown.pieces.len();
        }
    }
}
