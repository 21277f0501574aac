//! Sets of ports, as annotations write them: `3306,4000-5000,mysql`.

use crate::names::DEFAULT_OPAQUE_PORTS;

/// A set of ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ports(Vec<(u16, u16)>);

impl Ports {
    /// Reads a list of ports, ranges and names. What is neither is left out: an annotation with one bad part still
    /// means what its good parts say.
    pub fn parse(text: &str, named: impl Fn(&str) -> Option<u16>) -> Ports {
        let mut ports = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let range = match part.split_once('-') {
                Some((low, high)) => low.trim().parse().ok().zip(high.trim().parse().ok()),
                None => part.parse().ok().map(|port| (port, port)),
            };
            match range {
                Some((low, high)) if low <= high && low > 0 => ports.push((low, high)),
                Some(_) => {}
                None => ports.extend(named(part).map(|port| (port, port))),
            }
        }
        Ports(ports)
    }

    /// The default list of opaque ports.
    pub fn default_opaque() -> Ports {
        Ports(DEFAULT_OPAQUE_PORTS.iter().map(|port| (*port, *port)).collect())
    }

    /// Whether the port is in the set.
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|(low, high)| (*low..=*high).contains(&port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let ports = Ports::parse(" 3306, 4000-4010 ,mysql,, 70000, 9-5, nothing", |n| (n == "mysql").then_some(3307));
        for port in [3306, 4000, 4010, 3307] {
            assert!(ports.contains(port), "{port}");
        }
        for port in [0, 5, 9, 3999, 4011] {
            assert!(!ports.contains(port), "{port}");
        }
        assert!(Ports::default_opaque().contains(3306));
        assert_eq!(Ports::parse("", |_| None), Ports::default());
    }
}
