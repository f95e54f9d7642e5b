// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Figures of one run: samples by case and contender, and their ratios.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

/// Samples of every contender for every case, in one unit a case.
#[derive(Debug, Default)]
pub(super) struct Figures {
    about: Vec<(String, String)>,
    cases: Vec<Case>,
}

#[derive(Debug)]
struct Case {
    name: String,
    unit: &'static str,
    /// The contender that the others are divided by.
    base: String,
    samples: BTreeMap<String, Vec<f64>>,
}

impl Figures {
    /// Says what was measured with: versions, machine.
    pub(super) fn about(&mut self, what: &str, value: &str) {
        self.about.push((what.to_owned(), value.to_owned()));
    }

    /// Adds a sample; the case and the contender are made when first named.
    pub(super) fn add(&mut self, case: (&str, &'static str, &str), contender: &str, value: f64) {
        let (name, unit, base) = case;
        let at = self.cases.iter().position(|c| c.name == name);
        let at = at.unwrap_or_else(|| {
            self.cases.push(Case {
                name: name.to_owned(),
                unit,
                base: base.to_owned(),
                samples: BTreeMap::new(),
            });
            self.cases.len() - 1
        });
        if let Some(case) = self.cases.get_mut(at) {
            let samples = case.samples.entry(contender.to_owned()).or_default();
            samples.push(value);
        }
    }

    /// A table: minimum, median, and the ratio of medians to the base's.
    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        for (what, value) in &self.about {
            let _ = writeln!(text, "{what}: {value}");
        }
        for case in &self.cases {
            let base = case.samples.get(&case.base).map(|s| median(s));
            let _ = writeln!(text, "\n{} ({})", case.name, case.unit);
            let _ = writeln!(
                text,
                "  {:<24} {:>10} {:>10} {:>6}  runs",
                "", "min", "median", "ratio"
            );
            for (contender, samples) in &case.samples {
                let middle = median(samples);
                let ratio = base.map_or("-".to_owned(), |b| format!("{:.2}", middle / b));
                let _ = writeln!(
                    text,
                    "  {contender:<24} {:>10.2} {middle:>10.2} {ratio:>6}  {}",
                    minimum(samples),
                    samples.len()
                );
            }
        }
        text
    }

    /// The same as data, with every sample.
    pub(super) fn json(&self) -> Value {
        let cases: Vec<Value> = self
            .cases
            .iter()
            .map(|case| {
                let base = case.samples.get(&case.base).map(|s| median(s));
                let contenders: serde_json::Map<String, Value> = case
                    .samples
                    .iter()
                    .map(|(name, samples)| {
                        let middle = median(samples);
                        let value = json!({
                            "min": minimum(samples),
                            "median": middle,
                            "ratio": base.map(|b| middle / b),
                            "samples": samples,
                        });
                        (name.clone(), value)
                    })
                    .collect();
                json!({
                    "case": case.name,
                    "unit": case.unit,
                    "base": case.base,
                    "contenders": contenders,
                })
            })
            .collect();
        let about: serde_json::Map<String, Value> = self
            .about
            .iter()
            .map(|(k, v)| (k.clone(), json!(v)))
            .collect();
        json!({ "about": about, "cases": cases })
    }
}

fn minimum(samples: &[f64]) -> f64 {
    samples.iter().copied().fold(f64::INFINITY, f64::min)
}

/// The middle sample; of an even number, the mean of the middle two.
fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match (sorted.get(half), sorted.len() % 2) {
        (None, _) => f64::NAN,
        (Some(middle), 1) => *middle,
        (Some(above), _) => (sorted[half - 1] + above) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ratios() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
        let mut figures = Figures::default();
        for (contender, value) in [("ours", 2.0), ("peer", 4.0), ("ours", 3.0)] {
            figures.add(("boot", "s", "peer"), contender, value);
        }
        let json = figures.json();
        let ours = &json["cases"][0]["contenders"]["ours"];
        assert_eq!(ours["min"], 2.0);
        assert_eq!(ours["ratio"], 0.625);
        assert!(figures.table().contains("0.62"));
    }
}
