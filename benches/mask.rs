//! What it costs to hide secrets in the output of a job. `cargo bench --bench mask`

use std::time::Instant;

use clearml_agent::mask::{Mask, Secrets};

const LINES: usize = 1_000_000;
const ROUNDS: usize = 5;
/// As the journal reads from the job's pipe.
const PIECE: usize = 64 * 1024;

/// The same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, below: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % below
    }

    fn value(&mut self, length: usize) -> String {
        const LETTERS: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let letter = |_| char::from(LETTERS[self.below(64) as usize]);
        (0..length).map(letter).collect()
    }
}

/// Log lines, a progress bar, a traceback, an installer: what jobs print.
fn output(random: &mut Random) -> Vec<u8> {
    let mut text = String::new();
    for line in 0..LINES {
        let (a, b) = (random.below(60), random.below(100_000));
        text += &match line % 5 {
            0 => format!(
                "2026-01-02 10:11:{a:02},042 - root - INFO - step {line} loss=0.{b} lr=1e-04\n"
            ),
            1 => format!("Epoch {line}:  45%|████▌     | 450/1000 [00:{a:02}<00:10, {b}.2it/s]\r"),
            2 => "  File \"/usr/lib/python3.11/site-packages/torch/nn/modules/module.py\", line 1518, \
                  in _wrapped_call_impl\n"
                .to_owned(),
            3 => format!("Requirement already satisfied: numpy>=1.21 in ./venv/lib (1.26.{a})\n"),
            _ => format!("Downloading https://files.pythonhosted.org/packages/b7/{b}/a.whl\n"),
        };
    }
    text.into_bytes()
}

fn mask(random: &mut Random, count: usize) -> Mask {
    let mut secrets = Secrets::new();
    for number in 0..count {
        secrets.add(&format!("TOKEN_{number}"), &random.value(32));
    }
    Mask::new(secrets)
}

fn main() {
    let mut random = Random(7);
    let text = output(&mut random);
    let megabytes = text.len() as f64 / 1e6;
    println!("{LINES} lines, {megabytes:.0} MB");
    for count in [0, 3, 10, 100, 1_000] {
        let start = Instant::now();
        let mask = mask(&mut random, count);
        let build = start.elapsed();
        let mut best = f64::MAX;
        let mut out = Vec::with_capacity(2 * PIECE);
        for _ in 0..ROUNDS {
            let start = Instant::now();
            let mut masker = mask.masker();
            let mut length = 0;
            for piece in text.chunks(PIECE) {
                out.clear();
                masker.push(piece, &mut out);
                length += out.len();
            }
            out.clear();
            masker.finish(&mut out);
            assert_eq!(length + out.len(), text.len(), "something was hidden");
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!(
            "{count:5} secrets: {:5.0} MB/s, set made in {build:.1?}",
            megabytes / best
        );
    }
}
