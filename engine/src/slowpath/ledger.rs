//! The counters of ports by name. Ports come and go, with a link that loses its carrier or an interface that is made anew; what stands under a name goes on.

use std::sync::Arc;

use patronus_io::PortCounters;

/// All ports that there have been.
#[derive(Default)]
pub(super) struct Ledger(Vec<Line>);

struct Line {
    name: String,
    /// What the ports counted that are gone.
    past: Vec<u64>,
    /// Those that somebody still has, and maybe some that nobody has.
    ports: Vec<Arc<PortCounters>>,
}

impl Ledger {
    /// One more port under this name.
    pub(super) fn add(&mut self, name: String, counters: Arc<PortCounters>) {
        match self.0.iter_mut().find(|line| line.name == name) {
            Some(line) => {
                line.forget_gone();
                line.ports.push(counters);
            }
            None => self.0.push(Line {
                name,
                past: Vec::new(),
                ports: vec![counters],
            }),
        }
    }

    /// The same for several.
    pub(super) fn add_all(&mut self, all: impl Iterator<Item = (String, Arc<PortCounters>)>) {
        all.for_each(|(name, counters)| self.add(name, counters));
    }

    /// What the counters of each name have come to, in the order of [`PortCounters::named`].
    pub(super) fn lines(&self) -> impl Iterator<Item = (&str, Vec<u64>)> {
        self.0.iter().map(|line| {
            let ports = line.ports.iter();
            (
                &*line.name,
                ports.fold(line.past.clone(), |sum, port| add(sum, port)),
            )
        })
    }

    /// What each counter of each name has come to.
    pub(super) fn totals(&self) -> impl Iterator<Item = (&str, &'static str, u64)> {
        self.0.iter().flat_map(|line| {
            let total = line
                .ports
                .iter()
                .fold(line.past.clone(), |sum, port| add(sum, port));
            let names = PortCounters::default()
                .named()
                .map(|(name, _)| name)
                .collect::<Vec<_>>();
            let name = &*line.name;
            names
                .into_iter()
                .zip(total)
                .map(move |(counter, value)| (name, counter, value))
        })
    }
}

impl Line {
    /// Ports that nobody else has count no more: only what they have come to is kept.
    fn forget_gone(&mut self) {
        let gone = self.ports.extract_if(.., |port| Arc::strong_count(port) == 1);
        self.past = gone.fold(std::mem::take(&mut self.past), |sum, port| add(sum, &port));
    }
}

fn add(mut sum: Vec<u64>, port: &PortCounters) -> Vec<u64> {
    let values = port.named().map(|(_, value)| value);
    sum.resize(values.size_hint().0, 0);
    sum.iter_mut()
        .zip(values)
        .for_each(|(sum, value)| *sum = sum.wrapping_add(value));
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(ledger: &Ledger, name: &str) -> u64 {
        let mut all = ledger.totals();
        all.find(|(line, counter, _)| (*line, *counter) == (name, "rx_packets"))
            .unwrap()
            .2
    }

    #[test]
    fn a_name_goes_on_with_another_port() {
        let mut ledger = Ledger::default();
        for n in 1..=5 {
            let port = Arc::<PortCounters>::default();
            ledger.add("a".to_owned(), Arc::clone(&port));
            ledger.add("b".to_owned(), Arc::default());
            port.rx_packets.add(n);
            assert_eq!(received(&ledger, "a"), (1..=n).sum());
        }
        assert_eq!(received(&ledger, "b"), 0);
        // The last one is not found to be gone before there is another.
        assert_eq!(ledger.0[0].ports.len(), 1);
    }
}
