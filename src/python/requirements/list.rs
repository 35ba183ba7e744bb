//! A list of packages that has been read.

use std::path::PathBuf;

use super::{normalise, text::quoted};
use crate::python::Variables;

/// One line of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// A package from the index.
    Package {
        /// Normalised.
        name: String,
        text: String,
        /// `==VERSION` and nothing else.
        pin: Option<String>,
        /// It counts only for some platforms or Pythons.
        has_marker: bool,
    },
    /// An address, a repository, a folder or a file.
    Reference {
        name: Option<String>,
        text: String,
        /// The line as the task has it.
        original: String,
        /// The folder or file that is meant.
        local: Option<PathBuf>,
    },
    /// `--pre`, `--index-url …` and the like.
    Setting(String),
}

/// A list, ready to be given to uv or pip.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct List {
    pub lines: Vec<Line>,
    /// What a person should know about it.
    pub notes: Vec<String>,
}

impl List {
    /// Whether something would be installed.
    pub fn has_packages(&self) -> bool {
        self.lines.iter().any(|l| !matches!(l, Line::Setting(_)))
    }

    /// Whether it adds a package index to the usual one.
    pub fn names_an_extra_index(&self) -> bool {
        let extra = |l: &Line| matches!(l, Line::Setting(s) if s.starts_with("--extra-index-url"));
        self.lines.iter().any(extra)
    }

    /// A setting that uv has nothing for.
    pub fn only_for_pip(&self) -> Option<&str> {
        self.lines.iter().find_map(|line| match line {
            Line::Setting(setting) if setting == "--prefer-binary" => Some(setting.as_str()),
            _ => None,
        })
    }

    /// What uv does not take from a file (or lets its variables overrule), as pip means it.
    pub fn variables_for_uv(&self, env: &Variables) -> Variables {
        let mut told = Variables::new();
        for line in &self.lines {
            let Line::Setting(setting) = line else {
                continue;
            };
            match setting.split_once(' ').unwrap_or((setting, "")) {
                ("--index-url", url) => {
                    told.insert("UV_DEFAULT_INDEX".into(), url.to_owned());
                    if env.contains_key("UV_INDEX_URL") {
                        told.insert("UV_INDEX_URL".into(), url.to_owned());
                    }
                }
                ("--pre", _) => {
                    told.insert("UV_PRERELEASE".into(), "allow".into());
                }
                ("--trusted-host", host) => {
                    let hosts = told.entry("UV_INSECURE_HOST".into()).or_insert_with(|| {
                        let named = env.get("UV_INSECURE_HOST");
                        named.cloned().unwrap_or_default()
                    });
                    *hosts = format!("{hosts} {host}").trim().to_owned();
                }
                _ => {}
            }
        }
        told
    }

    /// Each package for itself, with all settings.
    pub fn one_by_one(&self) -> Vec<List> {
        let is_setting = |line: &&Line| matches!(line, Line::Setting(_));
        let settings: Vec<Line> = self.lines.iter().filter(is_setting).cloned().collect();
        let packages = self.lines.iter().filter(|line| !is_setting(line));
        packages
            .map(|line| List {
                lines: settings.iter().chain([line]).cloned().collect(),
                notes: Vec::new(),
            })
            .collect()
    }

    /// The text of a requirements file.
    pub fn file(&self) -> String {
        let mut text = String::new();
        for line in &self.lines {
            match line {
                Line::Package { text: line, .. } | Line::Reference { text: line, .. } => {
                    text.push_str(line);
                }
                Line::Setting(setting) => match setting.split_once(' ') {
                    Some((name, value)) => text.push_str(&format!("{name} {}", quoted(value))),
                    None => text.push_str(setting),
                },
            }
            text.push('\n');
        }
        text
    }

    /// The exact versions asked for, as a requirements file: what pip's old resolver takes as
    /// they are, even where they exclude each other.
    pub fn pins(&self) -> String {
        let mut text = String::new();
        for line in &self.lines {
            if let Line::Package {
                pin: Some(pin),
                name,
                has_marker: false,
                ..
            } = line
            {
                text.push_str(&format!("{name}=={pin}\n"));
            }
        }
        text
    }

    /// Puts the packages of these names apart: each becomes a list of its own, with all settings.
    pub fn split_off(&mut self, names: &[String]) -> Vec<(String, List)> {
        let wanted: Vec<String> = names.iter().map(|name| normalise(name)).collect();
        let settings: Vec<Line> = self
            .lines
            .iter()
            .filter(|l| matches!(l, Line::Setting(_)))
            .cloned()
            .collect();
        let mut apart = Vec::new();
        self.lines.retain(|line| match line {
            Line::Package { name, .. } if wanted.contains(name) => {
                let mut lines = settings.clone();
                lines.push(line.clone());
                let notes = Vec::new();
                apart.push((name.clone(), List { lines, notes }));
                false
            }
            _ => true,
        });
        apart
    }

    /// The normalised names of the packages.
    pub fn names(&self) -> Vec<String> {
        let name = |line: &Line| match line {
            Line::Package { name, .. } => Some(name.clone()),
            Line::Reference { name, .. } => name.as_deref().map(normalise),
            Line::Setting(_) => None,
        };
        self.lines.iter().filter_map(name).collect()
    }

    /// The line of the one folder, file or address in the list, where there is just one.
    pub fn only_reference(&self) -> Option<&str> {
        let mut references = self.lines.iter().filter_map(|line| match line {
            Line::Reference { original, .. } => Some(original.as_str()),
            _ => None,
        });
        references.next().filter(|_| references.next().is_none())
    }

    /// Adds a package from the index that is not in the list yet, at its head.
    pub fn add(&mut self, name: &str) {
        if !self.names().contains(&normalise(name)) {
            let line = Line::Package {
                name: normalise(name),
                text: name.to_owned(),
                pin: None,
                has_marker: false,
            };
            self.lines.insert(0, line);
        }
    }
}
