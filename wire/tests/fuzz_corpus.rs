//! The fuzz targets without a fuzzer: every corpus file, and seeded mutations of them, the same in every run.

use std::path::PathBuf;

use weft_wire::fuzzing::{TARGETS, Target};

const MUTATIONS: usize = 20_000;

/// Pieces that mean something to one codec or another.
const WORDS: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b": ",
    b" ",
    b"\0",
    b"0\r\n",
    b"5\r\nhello\r\n",
    b"ffffffffffffffff",
    b"content-length: 5\r\n",
    b"transfer-encoding: chunked\r\n",
    b"connection: close\r\n",
    b"connection: upgrade\r\nupgrade: x\r\n",
    b"host: a\r\n",
    b"HTTP/1.1",
    b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"\x16\x03\x01",
    b"\x00\x00\x04\x08\x00\x00\x00\x00\x01\x00\x00\x00\x01",
    b"\x00\x00\x00\x01\x05\x00\x00\x00\x01",
    b"\xff\xff\xff\x7f",
];

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.expect("entry").path()).collect();
    files.sort();
    let seeds: Vec<_> = files.iter().map(|file| std::fs::read(file).expect("seed")).collect();
    assert!(!seeds.is_empty(), "{} is empty", folder.display());
    seeds
}

fn mutate(rng: &mut fastrand::Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut data = seeds[rng.usize(..seeds.len())].clone();
    for _ in 0..rng.usize(1..6) {
        let at = rng.usize(..=data.len());
        match rng.u8(..8) {
            0 if at < data.len() => data[at] ^= 1 << rng.u8(..8),
            1 if at < data.len() => data[at] = rng.u8(..),
            2 => data.truncate(at),
            3 => {
                let end = (at + rng.usize(1..8)).min(data.len());
                data.drain(at..end);
            }
            4 => {
                let end = (at + rng.usize(1..64)).min(data.len());
                let copy = data[at..end].to_vec();
                let to = rng.usize(..=data.len());
                data.splice(to..to, copy);
            }
            5 => {
                let other = &seeds[rng.usize(..seeds.len())];
                let from = rng.usize(..=other.len());
                data.truncate(at);
                data.extend_from_slice(&other[from..]);
            }
            _ => {
                let word = WORDS[rng.usize(..WORDS.len())];
                data.splice(at..at, word.iter().copied());
            }
        }
    }
    data.truncate(4096);
    data
}

fn run(name: &str) {
    let target: Target = TARGETS.iter().find(|(n, _)| *n == name).expect("target").1;
    let seeds = corpus(name);
    for seed in &seeds {
        target(seed);
    }
    let mut rng = fastrand::Rng::with_seed(0x77_65_66_74);
    for round in 0..MUTATIONS {
        let data = mutate(&mut rng, &seeds);
        let survived = std::panic::catch_unwind(|| target(&data)).is_ok();
        assert!(survived, "mutation {round} of {name}: {:?}", data.escape_ascii().to_string());
    }
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test] fn $name() { run(stringify!($name)); })*

        #[test]
        fn every_target_is_run() {
            let run = [$(stringify!($name)),*];
            assert!(TARGETS.iter().map(|(name, _)| *name).eq(run));
        }
    };
}

targets!(h1_request h1_response detect client_hello transport_header h2_server h2_client hpack);
