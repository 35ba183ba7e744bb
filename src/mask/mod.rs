//! Hides secrets in everything that leaves the process: output of the job, the agent's own words,
//! reasons, files.
//!
//! Hidden are known values ([`Secrets`]) in all their usual writings, tokens that tell themselves by
//! their shape, private keys, and what stands where credentials stand: in addresses, in headers, in
//! parameters. A [`Mask`] is the shared set; each stream gets its own [`Masker`], a short text is given
//! to [`Mask::mask`].
//!
//! Three passes, each over what the one before has left (`tokens`, `fields`, `urls`), all driven by one
//! engine (`stage`). Whatever the input: its division into pieces changes nothing, memory is bounded,
//! and what is masked once is not changed by masking it again (but for what was longer than the rules
//! look, and is shorter for its masks).

mod fields;
mod forms;
mod names;
mod needles;
mod secrets;
mod stage;
mod tokens;
mod urls;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use names::{BadPattern, KeyNames, is_secret_variable};
pub use secrets::Secrets;

use fields::Fields;
use needles::Needles;
use stage::Stage;
use tokens::Tokens;
use urls::Urls;

/// What stands in place of a secret, however long it is.
pub const MASK: &str = "****";

/// So much goes through the passes at a time: it stays in the processor's cache.
const BLOCK: usize = 16 * 1024;

/// The set of secrets. A cheap handle; clones are the same set.
#[derive(Debug, Clone)]
pub struct Mask(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Grows with each change of the set.
    generation: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    secrets: Secrets,
    needles: Arc<Needles>,
}

/// That knows no value yet.
impl Default for Mask {
    fn default() -> Self {
        Self::new(Secrets::new())
    }
}

impl Mask {
    pub fn new(secrets: Secrets) -> Self {
        let needles = Arc::new(secrets.needles());
        Self(Arc::new(Shared {
            generation: AtomicU64::new(0),
            state: Mutex::new(State { secrets, needles }),
        }))
    }

    /// Hides one more value, in all streams from their next bytes on. `name` is for messages.
    pub fn add(&self, name: &str, value: &str) {
        self.extend(|secrets| {
            secrets.add(name, value);
        });
    }

    /// Hides more values, gathered by `more`.
    pub fn extend(&self, more: impl FnOnce(&mut Secrets)) {
        let mut state = self.state();
        let known = state.secrets.count();
        more(&mut state.secrets);
        if state.secrets.count() > known {
            state.needles = Arc::new(state.secrets.needles());
            self.0.generation.fetch_add(1, Ordering::Release);
        }
    }

    /// The names whose values are not hidden, because they are too short or too common.
    pub fn too_short(&self) -> Vec<String> {
        self.state()
            .secrets
            .too_short()
            .map(str::to_owned)
            .collect()
    }

    /// A filter for one stream.
    pub fn masker(&self) -> Masker {
        let generation = self.generation();
        let needles = self.state().needles.clone();
        Masker {
            mask: self.clone(),
            generation,
            tokens: Stage::new(Tokens { needles }),
            fields: Stage::new(Fields),
            urls: Stage::new(Urls),
            after_tokens: Vec::new(),
            after_fields: Vec::new(),
        }
    }

    /// `text` without secrets.
    pub fn mask(&self, text: &str) -> Masked {
        let mut masked = Vec::with_capacity(text.len());
        let mut masker = self.masker();
        masker.push(text.as_bytes(), &mut masked);
        masker.finish(&mut masked);
        Masked(match String::from_utf8(masked) {
            Ok(masked) => masked,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        })
    }

    fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Text that went through a [`Mask`]: nothing else makes one.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(transparent)]
pub struct Masked(String);

impl Masked {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn into_string(self) -> String {
        self.0
    }
}

impl fmt::Display for Masked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl AsRef<str> for Masked {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// Hides secrets in a stream of bytes of any kind.
///
/// Everything comes out at once but an end that may yet turn out to be a secret: at most 4 KiB of an
/// address' user part, 1 KiB of anything else.
#[derive(Debug)]
pub struct Masker {
    mask: Mask,
    generation: u64,
    tokens: Stage<Tokens>,
    fields: Stage<Fields>,
    urls: Stage<Urls>,
    after_tokens: Vec<u8>,
    after_fields: Vec<u8>,
}

impl Masker {
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let generation = self.mask.generation();
        if generation != self.generation {
            self.generation = generation;
            self.tokens.rules.needles = self.mask.state().needles.clone();
        }
        for block in bytes.chunks(BLOCK) {
            self.tokens.push(block, &mut self.after_tokens);
            self.pass_on(out);
        }
    }

    /// For a pause of the stream: gives out what is held back but harmless, as the `:` of a prompt,
    /// which could have begun a `://`. What may be part of a secret stays.
    pub fn flush(&mut self, out: &mut Vec<u8>) {
        self.tokens.flush(&mut self.after_tokens);
        self.pass_on(out);
        self.fields.flush(&mut self.after_fields);
        self.pass_on(out);
        self.urls.flush(out);
    }

    /// Nothing more comes: gives out all that is held back. The masker is as new afterwards.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.tokens.finish(&mut self.after_tokens);
        self.pass_on(out);
        self.fields.finish(&mut self.after_fields);
        self.pass_on(out);
        self.urls.finish(out);
    }

    /// What a pass has given out goes to the next.
    fn pass_on(&mut self, out: &mut Vec<u8>) {
        self.fields.push(&self.after_tokens, &mut self.after_fields);
        self.after_tokens.clear();
        self.urls.push(&self.after_fields, out);
        self.after_fields.clear();
    }
}

#[cfg(test)]
impl Masker {
    fn held_back(&self) -> usize {
        self.tokens.held_back() + self.fields.held_back() + self.urls.held_back()
    }
}
