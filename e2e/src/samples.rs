//! Metrics of proxies, as `weft metrics` prints them.

use crate::Cluster;

/// One sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Name of the metric.
    pub name: String,
    /// Labels and their values.
    pub labels: Vec<(String, String)>,
    /// Value.
    pub value: f64,
}

impl Sample {
    /// The value of a label; empty when there is none.
    pub fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }

    /// Whether it is this metric and has all these labels.
    pub fn is(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.name == name && labels.iter().all(|(name, value)| self.label(name) == *value)
    }

    /// `name{label="value",…} value`; none for comments. Values of labels with escaped quotes do not occur.
    fn parse(line: &str) -> Option<Self> {
        if line.starts_with('#') {
            return None;
        }
        let (head, value) = line.rsplit_once(' ')?;
        let (name, rest) = head.split_once('{').unwrap_or((head, "}"));
        let labels = rest.strip_suffix('}')?.split("\",").filter_map(|label| {
            let (name, value) = label.split_once("=\"")?;
            Some((name.to_owned(), value.trim_end_matches('"').to_owned()))
        });
        Some(Self { name: name.to_owned(), labels: labels.collect(), value: value.parse().ok()? })
    }
}

/// All samples of some proxies at one moment.
#[derive(Debug, Clone)]
pub struct Samples(pub Vec<Sample>);

impl Samples {
    /// Asks the proxies of a workload such as `deploy/web`.
    ///
    /// # Errors
    ///
    /// When they cannot be asked.
    pub fn of(cluster: &Cluster, namespace: &str, workload: &str) -> anyhow::Result<Self> {
        let text = cluster.weft(&["metrics", "-n", namespace, workload])?.success()?;
        Ok(Self(text.lines().filter_map(Sample::parse).collect()))
    }

    /// The sum of the samples with this name and these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.0.iter().filter(|sample| sample.is(name, labels)).map(|sample| sample.value).sum()
    }
}
