//! Queries, keys and values of a text, recorded in a file, so that only one layer's are in memory. They are stored in
//! fp16, whose rounding is a thousand times smaller than the loss of a reduced rank.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use gqa2mla_passes::analysis::observe::{ObservedLayer, Quantity};
use gqa2mla_passes::factor::reconstruct::Sequence;
use gqa2mla_passes::forms::CachedKeys;
use half::f16;

use crate::files::load::LoadedModel;
use crate::fit::calibrate::{Analyzed, CalibrateError, Watched};
use crate::fit::reconstruct::error::ReconstructError;
use crate::fit::reconstruct::reproduce::{Reproduced, reproduce};
use crate::fit::reconstruct::sequence::sequence;
use crate::measure::text::Text;
use crate::runtime::RuntimeOptions;
use gqa2mla_passes::analysis::Analysis;
use gqa2mla_passes::operators::Target;

/// File names of the activations in the original model, and in the model with rewritten earlier layers.
const ORIGINAL: &str = "activations.f16";
const REWRITTEN: &str = "activations-rewritten.f16";

/// The attentions of a model, and how their outputs are reproduced outside it.
pub struct ReproducedModel {
    /// The recorded keys: rotated or unrotated, as the form caches them.
    cached: CachedKeys,
    /// The attentions, each with its reproduction.
    pub layers: Vec<(ObservedLayer, Reproduced)>,
}

/// The activations of some of a model's attentions on a text, recorded in a file.
pub struct Recording {
    path: PathBuf,
    /// Number of recorded sequences, and tokens per sequence.
    sequences: usize,
    length: usize,
    /// Number of elements of each layer in one sequence; 0 for layers that are not recorded.
    numbers: Vec<usize>,
}

impl ReproducedModel {
    /// Runs `model` on one sequence and finds out how each attention can be reproduced.
    ///
    /// # Errors
    /// [`ReconstructError`] if the model cannot be run.
    pub fn of(
        model: Analyzed,
        text: &Text,
        cached: CachedKeys,
        runtime: &RuntimeOptions,
    ) -> Result<Self, ReconstructError> {
        let first = text.sequences().next().unwrap_or_default();
        let proof = [
            Quantity::Query,
            Quantity::Key,
            Quantity::Unrotated,
            Quantity::Value,
            Quantity::FirstHeadScores,
            Quantity::Output,
        ];
        let mut watched = Watched::open(model, &proof, runtime)?;
        let outputs = watched.read(first)?;
        let layers = std::mem::take(&mut watched.layers).into_iter();
        let layers = layers.map(|layer| {
            let how = reproduce(&layer, cached, &outputs, first.len());
            (layer, how)
        });
        Ok(Self {
            cached,
            layers: layers.collect(),
        })
    }

    /// Records the activations of all attentions of the original `model` on `text` in `folder`. An existing recording
    /// is reused.
    ///
    /// # Errors
    /// [`ReconstructError`] if the model cannot be run or the file cannot be written.
    pub fn record(
        &self,
        model: Analyzed,
        text: &Text,
        folder: &Path,
        runtime: &RuntimeOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Recording, ReconstructError> {
        let recording = self.recording(folder.join(ORIGINAL), text, 0..self.layers.len());
        if !recording.path.exists() {
            self.write(&recording, model, text, runtime, progress)?;
        }
        Ok(recording)
    }

    /// Records the activations of the layers at `positions` on `text`, in a `model` whose earlier layers are rewritten.
    ///
    /// # Errors
    /// [`ReconstructError`] if the model cannot be run or the file cannot be written.
    pub fn record_rewritten(
        &self,
        (model, positions): (&LoadedModel, Range<usize>),
        text: &Text,
        folder: &Path,
        runtime: &RuntimeOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Recording, ReconstructError> {
        let recording = self.recording(folder.join(REWRITTEN), text, positions);
        let analysis = Analysis::of(&model.model, Target::MatMul).map_err(CalibrateError::from)?;
        let rewritten = Analyzed {
            model,
            analysis: &analysis,
        };
        self.write(&recording, rewritten, text, runtime, progress)?;
        Ok(recording)
    }

    fn recording(&self, path: PathBuf, text: &Text, positions: Range<usize>) -> Recording {
        let numbers = |(position, (layer, how)): (usize, &(ObservedLayer, Reproduced))| {
            // Attentions that cannot be reproduced are not recorded.
            let recorded = positions.contains(&position) && matches!(how, Reproduced::As(_));
            usize::from(recorded) * widths(layer).iter().sum::<usize>() * text.length
        };
        Recording {
            path,
            sequences: text.sequences().len(),
            length: text.length,
            numbers: self.layers.iter().enumerate().map(numbers).collect(),
        }
    }

    fn write(
        &self,
        recording: &Recording,
        model: Analyzed,
        text: &Text,
        runtime: &RuntimeOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(), ReconstructError> {
        let unfinished = recording.path.with_extension("unfinished");
        let failed = |cause| ReconstructError::Io {
            path: unfinished.display().to_string(),
            cause,
        };
        let keys = match self.cached {
            CachedKeys::Unrotated => Quantity::Unrotated,
            _ => Quantity::Key,
        };
        let seen = [Quantity::Query, keys, Quantity::Value];
        let mut watched = Watched::open(model, &seen, runtime)?;
        let mut file = BufWriter::new(File::create(&unfinished).map_err(failed)?);
        for (number, tokens) in text.sequences().enumerate() {
            progress(number * text.length, text.ids.len());
            let outputs = watched.read(tokens)?;
            for ((layer, _), numbers) in self.layers.iter().zip(&recording.numbers) {
                // The names of outputs differ in a partly rewritten model.
                let shown = watched.layers.iter().find(|shown| shown.id == layer.id);
                let Some(layer) = shown.filter(|_| *numbers > 0) else {
                    continue;
                };
                let sequence = sequence(layer, self.cached, &outputs, tokens.len())?;
                for part in [&sequence.queries, &sequence.keys, &sequence.values] {
                    let half: Vec<u8> = part
                        .iter()
                        .flat_map(|&x| f16::from_f32(x).to_le_bytes())
                        .collect();
                    file.write_all(&half).map_err(failed)?;
                }
            }
        }
        file.into_inner()
            .map_err(|e| failed(e.into_error()))?
            .sync_all()
            .map_err(failed)?;
        fs::rename(&unfinished, &recording.path).map_err(failed)?;
        progress(text.ids.len(), text.ids.len());
        Ok(())
    }
}

/// Number of elements of the queries, keys and values of one token.
fn widths(layer: &ObservedLayer) -> [usize; 3] {
    let site = &layer.site;
    [
        site.heads * site.key.size,
        site.kv_heads * site.key.size,
        site.kv_heads * site.value.size,
    ]
}

impl Recording {
    /// The recorded sequences of the `layer` at `position`.
    ///
    /// # Errors
    /// [`ReconstructError::Io`].
    pub fn read(
        &self,
        layer: &ObservedLayer,
        position: usize,
    ) -> Result<Vec<Sequence>, ReconstructError> {
        let failed = |cause| ReconstructError::Io {
            path: self.path.display().to_string(),
            cause,
        };
        let before: usize = self.numbers.iter().take(position).sum();
        let whole: usize = self.numbers.iter().sum();
        let mut file = File::open(&self.path).map_err(failed)?;
        let mut all = Vec::with_capacity(self.sequences);
        for number in 0..self.sequences {
            let at = 2 * (number * whole + before) as u64;
            file.seek(SeekFrom::Start(at)).map_err(failed)?;
            let mut part = |width: usize| {
                let mut bytes = vec![0; 2 * width * self.length];
                file.read_exact(&mut bytes).map_err(failed)?;
                let numbers = bytes.chunks_exact(2).map(|b| {
                    let mut two = [0; 2];
                    two.copy_from_slice(b);
                    f16::from_le_bytes(two).to_f32()
                });
                Ok::<Vec<f32>, ReconstructError>(numbers.collect())
            };
            let [queries, keys, values] = widths(layer);
            let (queries, keys, values) = (part(queries)?, part(keys)?, part(values)?);
            all.push(Sequence {
                length: self.length,
                queries,
                keys,
                values,
            });
        }
        Ok(all)
    }
}
