//! The scenarios of a validation: prefill, single decode steps, several new tokens with a past, and a padded batch. The
//! same seed yields the same tokens.

use crate::validate::interface::Interface;
use crate::validate::port::Role;

/// Number of tokens of the prefill and of the multi-token step, and of padding positions of the first row of a batch.
const PREFILL: usize = 8;
const BURST: usize = 3;
const PADS: usize = 3;

/// A sequence of runs, each with the caches of the previous one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scenario {
    /// Its name, such as `batch of 2, left padding`.
    pub name: String,
    /// Rows.
    pub batch: usize,
    /// Number of left-padding positions of each row.
    pub pads: Vec<usize>,
    /// The runs, in order.
    pub steps: Vec<ScenarioStep>,
}

/// One run of a scenario.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScenarioStep {
    /// Its name, such as `prefill`, `step 2` or `3 tokens at once`.
    pub name: String,
    /// Number of new tokens per row.
    pub length: usize,
    /// Token ids `[batch, length]`, row-major.
    pub tokens: Vec<i64>,
}

/// The options of scenarios.
#[derive(Debug, Clone, Copy)]
pub struct ScenarioOptions<'a> {
    /// Upper bound of random token ids.
    pub vocabulary: usize,
    /// Token ids to use instead of random ones, cyclically.
    pub given: Option<&'a [i64]>,
    /// Seed of the random token ids.
    pub seed: u64,
    /// Whether the graph computes positions itself, so that left padding would shift them.
    pub right_padded_only: bool,
}

/// The scenarios that a model with this interface can run.
#[must_use]
pub fn scenarios(interface: &Interface, options: &ScenarioOptions<'_>) -> Vec<Scenario> {
    let mut source = TokenSource::new(options);
    let cached = !interface.caches.is_empty();
    let batch = interface.fixed_batch.unwrap_or(1);

    let mut plan = vec![("prefill".to_owned(), PREFILL)];
    match options.given {
        // The first half of a given text is the prefill; the other tokens are single steps.
        Some(given) if given.len() > 1 => {
            let half = given.len().div_ceil(2);
            plan = vec![("prefill".to_owned(), half)];
            plan.extend((half..given.len()).map(|at| (format!("token {}", at + 1), 1)));
        }
        _ => plan.extend((1..=3).map(|at| (format!("step {at}"), 1))),
    }
    plan.push((format!("{BURST} tokens at once"), BURST));
    // A file can fix the number of tokens of a run.
    let fixed = |plan: Vec<(String, usize)>| match interface.fixed_length() {
        Some(length) => in_runs(&plan, length, interface.capacity()),
        None => plan,
    };
    let plan = fixed(plan);
    let mut all = vec![source.scenario("one sequence", vec![0; batch], plan, cached)];

    if interface.fixed_batch.is_none() {
        let can_pad = interface.has(Role::AttentionMask) && !options.right_padded_only;
        let (name, pads) = if can_pad {
            ("batch of 2, left padding", PADS)
        } else {
            ("batch of 2", 0)
        };
        // Behind the past of a window, `GroupQueryAttention` takes several tokens in a batch of one alone.
        let prefill = match interface.window() {
            Some(_) => 1,
            None => PREFILL,
        };
        let plan = vec![
            ("prefill".to_owned(), prefill),
            ("step 1".to_owned(), 1),
            ("step 2".to_owned(), 1),
        ];
        let plan = fixed(plan);
        all.push(source.scenario(name, vec![pads, 0], plan, cached));
    }
    all
}

/// Runs of `length` tokens each that read as many tokens as those of `plan`, and at least two, as far as the caches hold them.
fn in_runs(
    plan: &[(String, usize)],
    length: usize,
    capacity: Option<usize>,
) -> Vec<(String, usize)> {
    let tokens: usize = plan.iter().map(|(_, tokens)| tokens).sum();
    let held = capacity.map_or(usize::MAX, |rows| rows / length.max(1));
    let runs = tokens.div_ceil(length.max(1)).max(2).min(held.max(1));
    let run = |number| (format!("run {number}"), length);
    (1..=runs).map(run).collect()
}

struct TokenSource<'a> {
    given: &'a [i64],
    used: usize,
    vocabulary: u64,
    random: Random,
}

impl<'a> TokenSource<'a> {
    fn new(options: &ScenarioOptions<'a>) -> Self {
        let vocabulary = u64::try_from(options.vocabulary).unwrap_or(u64::MAX).max(1);
        Self {
            given: options.given.unwrap_or_default(),
            used: 0,
            vocabulary,
            random: Random::new(options.seed),
        }
    }

    fn next(&mut self) -> i64 {
        if let Some(token) = self.given.get(self.used % self.given.len().max(1)) {
            self.used += 1;
            return *token;
        }
        i64::try_from(self.random.next_u64() % self.vocabulary).unwrap_or(0)
    }

    fn scenario(
        &mut self,
        name: &str,
        pads: Vec<usize>,
        plan: Vec<(String, usize)>,
        cached: bool,
    ) -> Scenario {
        let batch = pads.len();
        // Without a cache only the prefill can be run.
        let runs = if cached { plan.len() } else { 1 };
        let mut before = 0;
        let mut steps = Vec::new();
        for (name, length) in plan.into_iter().take(runs) {
            let mut tokens = Vec::with_capacity(batch * length);
            for pads in &pads {
                tokens.extend(
                    (before..before + length).map(|at| if at < *pads { 0 } else { self.next() }),
                );
            }
            steps.push(ScenarioStep {
                name,
                length,
                tokens,
            });
            before += length;
        }
        Scenario {
            name: name.to_owned(),
            batch,
            pads,
            steps,
        }
    }
}

/// The random number generator `SplitMix64`, which is the same on every machine.
pub struct Random(u64);

impl Random {
    /// A generator with the seed `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in [-1, 1).
    #[allow(clippy::cast_precision_loss)]
    pub fn signed_unit(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }
}
