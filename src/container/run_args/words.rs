//! Words of a command line, taken apart into flags as docker's client does (pflag): `-eA=b`, `-it`,
//! `--flag=value`, `--flag value` with any value, a dash in front of it included. Which flag takes a
//! value is known from [`Flags`] alone.

use std::sync::LazyLock;

use clap::CommandFactory as _;

use super::error::RunArgsError;
use super::flags::Flags;

/// One string of arguments to words, as a POSIX shell splits them.
pub fn split(text: &str) -> Result<Vec<String>, RunArgsError> {
    shlex::split(text).ok_or_else(|| RunArgsError::Unbalanced {
        text: text.to_owned(),
    })
}

/// One flag as it was written, with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// The flag's name, whichever of its names was written: `volume` for `-v`.
    pub name: &'static str,
    /// As it was written: `-v`, `--net`.
    pub flag: String,
    /// Absent where an on-off flag stands alone.
    pub value: Option<String>,
}

impl Word {
    /// The words to write for it.
    fn write(&self, words: &mut Vec<String>) {
        match (&self.value, is_switch(self.name)) {
            (None, _) => words.push(self.flag.clone()),
            (Some(value), true) => words.push(format!("{}={value}", self.flag)),
            (Some(value), false) => words.extend([self.flag.clone(), value.clone()]),
        }
    }

    /// For the command line type: its name and value in one word.
    pub(super) fn normal(&self) -> String {
        let value = self.value.as_deref().unwrap_or("true");
        format!("--{}={value}", self.name)
    }
}

/// A flag as docker knows it.
struct Definition {
    name: String,
    other_names: Vec<String>,
    short: Option<char>,
    /// On or off, and alone it means on.
    switch: bool,
}

static DEFINITIONS: LazyLock<Vec<Definition>> = LazyLock::new(|| {
    let mut command = Flags::command();
    command.build();
    command
        .get_arguments()
        .filter_map(|arg| {
            Some(Definition {
                name: arg.get_long()?.to_owned(),
                other_names: arg
                    .get_all_aliases()
                    .unwrap_or_default()
                    .into_iter()
                    .map(str::to_owned)
                    .collect(),
                short: arg.get_short(),
                switch: arg.is_require_equals_set(),
            })
        })
        .collect()
});

/// The full names of all flags.
#[cfg(test)]
pub(in crate::container) fn names() -> impl Iterator<Item = &'static str> {
    DEFINITIONS.iter().map(|known| known.name.as_str())
}

fn long(name: &str) -> Option<&'static Definition> {
    DEFINITIONS
        .iter()
        .find(|known| known.name == name || known.other_names.iter().any(|n| n == name))
}

fn short(letter: char) -> Option<&'static Definition> {
    DEFINITIONS.iter().find(|known| known.short == Some(letter))
}

fn is_switch(name: &str) -> bool {
    long(name).is_some_and(|known| known.switch)
}

/// The flags that `words` are.
pub fn flags(words: &[String]) -> Result<Vec<Word>, RunArgsError> {
    let mut flags: Vec<Word> = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if let Some(body) = word.strip_prefix("--").filter(|body| !body.is_empty()) {
            let (name, attached) = match body.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (body, None),
            };
            let flag = format!("--{name}");
            let Some(known) = long(name) else {
                return Err(RunArgsError::UnknownFlag { flag });
            };
            let value = match attached {
                None if !known.switch => match words.next() {
                    Some(value) => Some(value.clone()),
                    None => return Err(RunArgsError::NoValue { flag }),
                },
                attached => attached,
            };
            flags.push(Word {
                name: &known.name,
                flag,
                value,
            });
            continue;
        }
        let letters = match word.strip_prefix('-') {
            Some(letters) if !letters.is_empty() && letters != "-" => letters,
            _ => {
                return Err(RunArgsError::NoFlag {
                    word: word.clone(),
                    after: flags
                        .last()
                        .filter(|last| is_switch(last.name))
                        .map(|last| last.flag.clone()),
                });
            }
        };
        let mut rest = letters;
        while let Some(letter) = rest.chars().next() {
            rest = &rest[letter.len_utf8()..];
            let flag = format!("-{letter}");
            let Some(known) = short(letter) else {
                return Err(RunArgsError::UnknownFlag {
                    flag: match letters.chars().count() {
                        1 => flag,
                        _ => format!("{flag} (in {word})"),
                    },
                });
            };
            let value = match rest.strip_prefix('=') {
                Some(value) => {
                    rest = "";
                    Some(value)
                }
                None if known.switch => None,
                None if rest.is_empty() => match words.next() {
                    Some(value) => Some(value.as_str()),
                    None => return Err(RunArgsError::NoValue { flag }),
                },
                None => Some(std::mem::take(&mut rest)),
            };
            flags.push(Word {
                name: &known.name,
                flag,
                value: value.map(str::to_owned),
            });
        }
    }
    Ok(flags)
}

/// Whether `name` (as configurations name flags: `network`, `v`, `--entrypoint`) is this flag, by
/// any of its names.
pub fn is_named(word: &Word, name: &str) -> bool {
    let name = name.trim().trim_start_matches('-');
    let known = match (long(name), name.chars().next()) {
        (Some(known), _) => Some(known),
        (None, Some(letter)) if name.chars().count() == 1 => short(letter),
        _ => None,
    };
    known.is_some_and(|known| known.name == word.name)
}

/// The words for `flags`, without those that `drop` says.
pub fn without(flags: &[Word], drop: impl Fn(&Word) -> bool) -> Vec<String> {
    let mut words = Vec::new();
    for flag in flags.iter().filter(|flag| !drop(flag)) {
        flag.write(&mut words);
    }
    words
}
