//! The finished rows of a comparison, from which a run that was stopped goes on.

use std::fs;
use std::path::{Path, PathBuf};

use gqa2mla_passes::factor::CacheBits;
use ndarray::{Array1, ArrayView1};

use crate::files::interrupted::{ROWS, Work, keep_work};
use crate::files::tensors::{Arrays, ArraysError};
use crate::measure::quality::{Bin, Quality};

/// What the file of rows is.
const KIND: &str = "gqa2mla compared rows 1";
/// The entry of the inputs in its metadata.
const INPUTS: &str = "inputs";
/// Numbers of a row in front of those of its ranges of positions.
const FIXED: usize = 9;
/// Numbers of a range of positions.
const OF_BIN: usize = 7;

/// The rows that are finished, in a hidden folder that a killed run leaves.
pub struct KeptRows {
    /// `None`: nothing can be kept.
    work: Option<Work>,
    rows: Arrays,
}

/// A row: the rank of its latents, and its quality.
pub type Row = (usize, Quality);

impl KeptRows {
    /// Opens the rows of a comparison with these `inputs` in the folder `parent`; without a folder, or where none can be made
    /// in it, rows are not kept. The folder's name has a checksum of the inputs, so that no run goes on from rows of others.
    pub fn open(parent: Option<&Path>, inputs: &str) -> Self {
        let name = format!("{ROWS}{:08x}", crc32fast::hash(inputs.as_bytes()));
        let work = parent.and_then(|parent| keep_work(&parent.join(name)).ok());
        let rows = work.as_ref().and_then(|work| {
            let rows = Arrays::load(KIND, &rows_file(work)).ok()?;
            // The checksum of other inputs may be the same.
            (rows.entry(INPUTS).ok()? == inputs).then_some(rows)
        });
        let mut rows = rows.unwrap_or_default();
        rows.text.insert(INPUTS.to_owned(), inputs.to_owned());
        Self { work, rows }
    }

    /// The file for statistics of the same comparison.
    pub fn statistics(&self) -> Option<PathBuf> {
        Some(self.work.as_ref()?.folder().join("statistics"))
    }

    /// The row of a way at one size, if it is finished.
    pub fn find(&self, way: &str, bits: CacheBits, ratio: f64) -> Option<Row> {
        let row: Array1<f64> = self.rows.get(&row_name(way, bits, ratio)).ok()?;
        from_numbers(row.as_slice()?)
    }

    /// Keeps a row.
    ///
    /// # Errors
    /// [`ArraysError`] if it cannot be written.
    pub fn keep(
        &mut self,
        (way, bits, ratio): (&str, CacheBits, f64),
        row: &Row,
    ) -> Result<(), ArraysError> {
        let Some(work) = &self.work else {
            return Ok(());
        };
        let numbers = to_numbers(row);
        let numbers = ArrayView1::from(&numbers);
        self.rows.put(&row_name(way, bits, ratio), &numbers);
        self.rows.save(KIND, &rows_file(work))
    }

    /// Removes the rows of a comparison that is complete.
    pub fn finish(mut self) {
        if let Some(work) = self.work.take() {
            work.remove();
        }
    }
}

impl Drop for KeptRows {
    fn drop(&mut self) {
        // Only a folder that holds nothing can be removed this way.
        if let Some(work) = &self.work {
            let _ = fs::remove_dir(work.folder());
        }
    }
}

fn rows_file(work: &Work) -> PathBuf {
    work.folder().join("rows")
}

fn row_name(way: &str, bits: CacheBits, ratio: f64) -> String {
    let bits = bits.number().unwrap_or_default();
    format!("{way} {bits} {ratio}")
}

fn to_numbers((rank, quality): &Row) -> Vec<f64> {
    let whole = |number: usize| number as f64;
    let mut numbers = vec![
        whole(*rank),
        whole(quality.tokens),
        quality.original_perplexity,
        quality.rewritten_perplexity,
        quality.mean_kl,
        quality.top1_agreement,
        whole(quality.tokens_at_once),
        quality.original_cache_bytes,
        quality.rewritten_cache_bytes,
    ];
    numbers.extend(quality.positions.iter().flat_map(|bin| {
        [
            whole(bin.first),
            whole(bin.last),
            whole(bin.tokens),
            bin.original_perplexity,
            bin.rewritten_perplexity,
            bin.mean_kl,
            bin.top1_agreement,
        ]
    }));
    numbers
}

fn from_numbers(numbers: &[f64]) -> Option<Row> {
    let (fixed, bins) = numbers.split_first_chunk::<FIXED>()?;
    let (bins, rest) = bins.as_chunks::<OF_BIN>();
    if !rest.is_empty() {
        return None;
    }
    let bin = |&[first, last, tokens, before, after, kl, top1]: &[f64; OF_BIN]| Bin {
        first: first as usize,
        last: last as usize,
        tokens: tokens as usize,
        original_perplexity: before,
        rewritten_perplexity: after,
        mean_kl: kl,
        top1_agreement: top1,
    };
    let &[
        rank,
        tokens,
        before,
        after,
        kl,
        top1,
        at_once,
        bytes_before,
        bytes_after,
    ] = fixed;
    let quality = Quality {
        tokens: tokens as usize,
        original_perplexity: before,
        rewritten_perplexity: after,
        mean_kl: kl,
        top1_agreement: top1,
        tokens_at_once: at_once as usize,
        original_cache_bytes: bytes_before,
        rewritten_cache_bytes: bytes_after,
        positions: bins.iter().map(bin).collect(),
    };
    Some((rank as usize, quality))
}
