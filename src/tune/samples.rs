//! The sequences of a training run, and the positions of each whose predictions are in the loss.

use std::ops::Range;

use crate::measure::examples::Example;
use crate::measure::text::Text;

/// Largest number of held-out tokens. A check runs both models on them, and all checks together should take less than a
/// quarter of the time of the steps.
const HELD_OUT: usize = 2048;
/// Number of positions at the start of a sequence of text that are not in the loss, because they have too little context.
const WITHOUT_CONTEXT: usize = 16;

/// A sequence.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Sample {
    /// Its token ids.
    pub tokens: Vec<i64>,
    /// The positions whose predictions of the next token are in the loss.
    pub counted: Range<usize>,
}

/// The sequences of a run.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Samples {
    /// The sequences of the steps.
    pub train: Vec<Sample>,
    /// The sequences that choose the best state.
    pub held_out: Vec<Sample>,
    /// Whether they are examples, whose answers are right or wrong as a whole.
    pub answers: bool,
}

impl Samples {
    /// The sequences of `text`; the last ones are held out. `None` if the text is too short.
    #[must_use]
    pub fn of_text(text: &Text) -> Option<Self> {
        let (train, held_out) = text.hold_out(HELD_OUT)?;
        let samples = |text: &Text| {
            let samples = text.sequences().map(|tokens| Sample {
                counted: WITHOUT_CONTEXT.min(tokens.len() / 4)..tokens.len(),
                tokens: tokens.to_vec(),
            });
            samples.collect()
        };
        Some(Self {
            train: samples(&train),
            held_out: samples(&held_out),
            answers: false,
        })
    }

    /// The `examples` with at most `longest` tokens, with the loss on answers only; the last ones are held out: a third of
    /// them, with at most 2,048 tokens. `None` if fewer than three are left.
    #[must_use]
    pub fn of_examples(examples: Vec<Example>, longest: usize) -> Option<Self> {
        let short = examples.into_iter().filter(|e| e.ids.len() <= longest);
        let mut train: Vec<Sample> = short
            .map(|example| Sample {
                // The last token of the prompt predicts the first one of the answer.
                counted: example.prompt.saturating_sub(1)..example.ids.len().saturating_sub(1),
                tokens: example.ids,
            })
            .collect();
        let most = train.len() / 3;
        let mut tokens = 0;
        let fits = |sample: &&Sample| {
            tokens += sample.tokens.len();
            tokens <= HELD_OUT
        };
        let held_out = train.iter().rev().take(most).take_while(fits).count();
        let held_out = train.split_off(train.len() - held_out.max(most.min(1)));
        (!held_out.is_empty()).then_some(Self {
            train,
            held_out,
            answers: true,
        })
    }

    /// Number of tokens of the longest sequence.
    #[must_use]
    pub fn longest(&self) -> usize {
        let all = self.train.iter().chain(&self.held_out);
        all.map(|sample| sample.tokens.len()).max().unwrap_or(0)
    }

    /// Number of all tokens.
    #[must_use]
    pub fn tokens(&self) -> usize {
        let all = self.train.iter().chain(&self.held_out);
        all.map(|sample| sample.tokens.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::Samples;
    use crate::measure::examples::Example;

    #[test]
    fn only_answers_of_short_examples_count_and_the_last_third_is_held_out() {
        let example = |first: i64, tokens: usize| Example {
            ids: (first..first + tokens as i64).collect(),
            prompt: 3,
        };
        let examples = vec![
            example(0, 5),
            example(10, 50),
            example(20, 4),
            example(30, 6),
        ];
        let samples = Samples::of_examples(examples, 10).unwrap();
        let firsts: Vec<i64> = samples.train.iter().map(|s| s.tokens[0]).collect();
        assert_eq!(firsts, [0, 20]);
        assert_eq!(samples.held_out.len(), 1);
        // Positions 2 to 4 predict the tokens 3 to 5.
        assert_eq!(samples.held_out[0].counted, 2..5);
        assert!(Samples::of_examples(vec![example(0, 5), example(1, 5)], 10).is_none());
    }
}
