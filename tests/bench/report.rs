//! The table and the JSON: what was measured, how often, against which goal, and whether a miss is more than noise.

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::support::bed::target;

/// Compared figures of memory and sizes differ by so much from run to run of one executable: where the allocator and the
/// scheduler happened to be.
pub(crate) const MEMORY_NOISE: f64 = 0.03;

/// A figure and the figures of all its runs.
#[derive(Debug, Serialize)]
struct Row {
    run: String,
    measure: String,
    unit: &'static str,
    values: Vec<f64>,
    median: f64,
    /// At most this much; figures without a goal are there to explain those with one.
    goal: Option<f64>,
    /// Share of the goal by which the median may be above it.
    noise: f64,
    verdict: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
enum Verdict {
    Told,
    Met,
    Noise,
    Missed,
}

impl Verdict {
    fn of(median: f64, goal: Option<f64>, noise: f64) -> Self {
        match goal {
            None => Self::Told,
            Some(goal) if median <= goal => Self::Met,
            Some(goal) if median <= goal * (1.0 + noise) => Self::Noise,
            Some(_) => Self::Missed,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Told => "",
            Self::Met => "ok",
            Self::Noise => "above, within noise",
            Self::Missed => "MISSED",
        }
    }
}

/// The middle of the values; of an even number of them the mean of both in the middle.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

/// How much the machine alone changes a time: half the spread of what does the same work in every run, as a share of its
/// median. The product has no part in it.
pub(crate) fn noise(reference: &[f64]) -> f64 {
    let most = reference.iter().copied().fold(f64::MIN, f64::max);
    let least = reference.iter().copied().fold(f64::MAX, f64::min);
    (most - least) / 2.0 / median(reference)
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// A figure that explains.
    pub(crate) fn tell(&mut self, run: &str, measure: &str, unit: &'static str, values: Vec<f64>) {
        self.row(run, measure, unit, values, None, 0.0);
    }

    /// A figure with a goal: at most `goal`, `noise` a share of it.
    pub(crate) fn judge(
        &mut self,
        run: &str,
        measure: &str,
        unit: &'static str,
        values: Vec<f64>,
        goal: f64,
        noise: f64,
    ) {
        self.row(run, measure, unit, values, Some(goal), noise);
    }

    /// Times of the product and of a reference that ran in turns with it: both, and their ratio, which has the goal. Returns
    /// the noise of the reference.
    pub(crate) fn compare(&mut self, run: &str, of: &str, product: &[f64], reference: &[f64], goal: f64) -> f64 {
        let noise = noise(reference);
        let ratios = product.iter().zip(reference).map(|(product, reference)| product / reference).collect();
        self.tell(run, "time", "s", product.to_vec());
        self.tell(run, &format!("time of {of}"), "s", reference.to_vec());
        self.judge(run, "ratio of both", "", ratios, goal, noise);
        noise
    }

    fn row(&mut self, run: &str, measure: &str, unit: &'static str, values: Vec<f64>, goal: Option<f64>, noise: f64) {
        let median = median(&values);
        let verdict = Verdict::of(median, goal, noise);
        let row = Row { run: run.to_owned(), measure: measure.to_owned(), unit, values, median, goal, noise, verdict };
        println!("{}", row.line());
        self.rows.push(row);
    }

    /// Prints the table and writes `bench.json` beside what Cargo makes; an error names the goals that are missed.
    pub(crate) fn end(&self) -> Result<()> {
        println!("\n| Run | Measure | Median | Runs | Goal (at most) | Noise | |\n|---|---|---|---|---|---|---|");
        for row in &self.rows {
            println!("{}", row.line());
        }
        let file = target().join("bench.json");
        std::fs::write(&file, serde_json::to_vec_pretty(self)?).with_context(|| file.display().to_string())?;
        println!("\nThe same as JSON: {}", file.display());
        let missed: Vec<_> = self.rows.iter().filter(|row| row.verdict == Verdict::Missed).map(Row::line).collect();
        ensure!(missed.is_empty(), "missed by more than the noise:\n{}", missed.join("\n"));
        Ok(())
    }
}

impl Row {
    fn line(&self) -> String {
        let values: Vec<_> = self.values.iter().map(|value| figure(*value)).collect();
        let goal = self.goal.map(figure).unwrap_or_default();
        let noise = if self.noise > 0.0 { format!("{:.0} %", self.noise * 100.0) } else { String::new() };
        format!(
            "| {} | {} | {} {} | {} | {goal} | {noise} | {} |",
            self.run,
            self.measure,
            figure(self.median),
            self.unit,
            values.join(", "),
            self.verdict.word()
        )
    }
}

/// Two digits after the point where the figure is small.
fn figure(value: f64) -> String {
    if value >= 100.0 || value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

/// Compressed size of the product image, bytes: all blobs of its OCI layout.
pub(crate) fn image_bytes() -> Result<u64> {
    let blobs = target().join("image/kmm/blobs/sha256");
    let entries = std::fs::read_dir(&blobs).context("the product image is missing; `make image` builds it")?;
    let sizes = entries.map(|entry| Ok(entry?.metadata()?.len())).collect::<std::io::Result<Vec<u64>>>()?;
    Ok(sizes.iter().sum())
}
