//! Installs the task's list into a conda environment: by conda what conda has, the rest by pip's rules;
//! and says what to record.

use std::path::Path;

use serde_json::Value;

use super::prefix::{self, Record};
use super::solved::{Place, Solved};
use super::specs::{Divided, Facts, Otherwise, Spec, alike, divide, exported};
use super::words::{CondaFailure, Meaning};
use super::{Calling, Dialect, words};
use crate::console::Console;
use crate::python::filling::Filling;
use crate::python::install::Installed;
use crate::python::obtain::Job;
use crate::python::record::{lines_to_record, recorded};
use crate::python::requirements::{Line, List, Reading, normalise, parse};
use crate::python::settings::Settings;
use crate::python::tools::Kind;
use crate::python::{PythonError, freeze};
use crate::task::Script;

/// The lists that count, read.
pub(in crate::python) struct Lists {
    pub pip: List,
    /// The task's list `conda`; `None`: it has none, or the repository's files are used.
    pub conda: Option<String>,
    /// The task's `conda_env_json`.
    pub exported: Option<String>,
}

/// Installs the lists, and `more` (what the agent itself adds).
pub(in crate::python) async fn fill(
    job: &Job<'_>,
    script: &Script,
    lists: Lists,
    more: List,
) -> Result<Installed, PythonError> {
    let (env, settings) = (job.env, job.settings);
    let (Some(conda), Some(prefix)) = (&job.tools.conda, &env.folder) else {
        return Ok(Installed::default());
    };
    let (Some(interpreter), Some(python)) = (&env.interpreter, &env.python) else {
        return Ok(Installed::default());
    };
    let calling = Calling {
        conda,
        settings,
        console: job.console,
        stop: job.stop,
    };
    let facts = Facts {
        channels: &settings.conda.channels,
        cuda: job.tools.cuda,
    };
    let held = format!("python={}", interpreter.minor_version());
    let mut pip = None;
    if let Some(json) = &lists.exported {
        pip = calling
            .restore(prefix, &held, json, &lists, facts, job)
            .await?;
    }
    let mut pip = match pip {
        Some(pip) => pip,
        None => {
            let all = lists.conda.is_none();
            let divided = divide(lists.pip.clone(), lists.conda.as_deref(), facts);
            calling.install(prefix, &held, divided, all).await?
        }
    };
    for line in more.lines {
        if let Line::Package { name, .. } = &line {
            pip.add(name);
        }
    }
    for note in &pip.notes {
        job.console.say(format!("Note: {note}."));
    }
    let requested = pip.names();
    if pip.has_packages() {
        job.console.say(format!(
            "Packages: by pip's rules, because conda has them not or not so: {}",
            requested.join(", ")
        ));
        // What is built finds conda's compilers and libraries.
        let told = prefix::activated(
            prefix,
            &settings.environment,
            Some(&conda.program),
            job.console,
            job.stop,
        )
        .await?;
        let settings = Settings {
            environment: told,
            ..settings.clone()
        };
        let filling = Filling::new(env, job, &settings)?;
        if let Some(mut filling) = filling {
            filling.fill(&pip).await?;
        }
    }

    // conda may have taken another one.
    let version = calling
        .ask(python)
        .await
        .map_or(interpreter.version, |now| now.version);
    if version != interpreter.version {
        job.console.say(format!(
            "Note: {} has put another Python into the environment: {}.{}.{}.",
            conda.name, version.0, version.1, version.2
        ));
    }
    let of_conda = prefix::records(prefix);
    let theirs = prefix::of_conda(&env.site_packages);
    let mut packages = freeze::installed(&env.site_packages);
    packages.retain(|package| {
        let name = normalise(&package.name);
        !theirs.contains(&name) && !of_conda.iter().any(|record| alike(&record.name, &name))
    });
    let by_pip = lines_to_record(&packages, &pip, version, &requested, job.root);
    let by_conda = lines(&of_conda);
    let record = settings.conda.full_env_update && env.kind != Kind::AsItIs;
    let requirements_to_record = match record {
        false => None,
        true => {
            let mut requirements = recorded(&script.requirements, &for_pip(&by_conda, &by_pip));
            let list = by_conda.iter().cloned().map(Value::String).collect();
            requirements.0.insert("conda".into(), Value::Array(list));
            if let Some(json) = calling.export(prefix).await? {
                let json = Value::String(json);
                requirements.0.insert("conda_env_json".into(), json);
            }
            Some(requirements)
        }
    };
    Ok(Installed {
        requirements_to_record,
        summary: by_conda.into_iter().chain(by_pip).collect(),
    })
}

/// The list `conda`: without what belongs to conda itself.
fn lines(records: &[Record]) -> Vec<String> {
    let listed = records
        .iter()
        .filter(|record| !record.name.starts_with('_'));
    listed
        .map(|record| {
            let name = match record.name.as_str() {
                "pytorch" => "torch",
                name => name,
            };
            match record.version.is_empty() {
                true => name.to_owned(),
                false => format!("{name}=={}", record.version),
            }
        })
        .collect()
}

/// The list `pip`, as the Python agent writes it: conda's packages are in it, too.
fn for_pip(by_conda: &[String], by_pip: &[String]) -> Vec<String> {
    if by_conda.is_empty() {
        return by_pip.to_vec();
    }
    let head = |text: &str| vec![text.to_owned(), String::new()];
    [
        head("# Conda Packages"),
        by_conda.to_vec(),
        vec![String::new()],
        head("# pip Packages"),
        by_pip.to_vec(),
    ]
    .concat()
}

impl Calling<'_> {
    /// Installs what conda has, and gives what is left for pip. `all`: conda was asked for the whole
    /// list of pip.
    async fn install(
        &self,
        prefix: &Path,
        held: &str,
        divided: Divided,
        all: bool,
    ) -> Result<List, PythonError> {
        let Divided {
            conda: mut wanted,
            mut pip,
        } = divided;
        if wanted.is_empty() {
            return Ok(pip);
        }
        let whole: Vec<String> = wanted.iter().map(Spec::text).collect();
        let whole = [vec![held.to_owned()], whole].concat();
        let place = Place::of(self.conda, self.settings, &whole);
        if let Some(place) = &place
            && let Some(left) = self.as_known("install", prefix, place).await?
        {
            let left = wanted.into_iter().filter(|spec| left.contains(&spec.name));
            pip.lines.extend(left.filter_map(Spec::line));
            return Ok(pip);
        }
        let mut left_out = Vec::new();
        while !wanted.is_empty() {
            let listed: Vec<String> = wanted.iter().map(Spec::text).collect();
            self.console.say(format!(
                "Packages: by {}: {}",
                self.conda.name,
                listed.join(", ")
            ));
            let packages = [vec![held.to_owned()], listed].concat();
            let failure = match self.update(prefix, &packages).await? {
                Ok(()) => break,
                Err(failure) => failure,
            };
            let left = give_up(&mut wanted, &failure, all);
            if left.is_empty() {
                return Err(PythonError::Conda(failure));
            }
            let names: Vec<String> = left.iter().map(|spec| spec.name.clone()).collect();
            self.console.say(format!(
                "Note: {} can't have {}: trying without.",
                self.conda.name,
                names.join(", ")
            ));
            left_out.extend(names);
            pip.lines.extend(left.into_iter().filter_map(Spec::line));
        }
        if let (Some(place), Some(solved)) = (place, Solved::of(prefix, left_out)) {
            place.write(&solved);
        }
        Ok(pip)
    }

    /// The environment as the task has it exported. `None`: it can't be had so, and the lists are next.
    async fn restore(
        &self,
        prefix: &Path,
        held: &str,
        json: &str,
        lists: &Lists,
        facts: Facts<'_>,
        job: &Job<'_>,
    ) -> Result<Option<List>, PythonError> {
        let Some(whole) = exported(json, facts) else {
            self.console.say(
                "Note: the task's conda_env_json can't be read: its lists of packages are used.",
            );
            return Ok(None);
        };
        self.console.say(format!(
            "Packages: the task's whole conda environment (conda_env_json), {} packages",
            whole.dependencies.len()
        ));
        let packages = [vec![held.to_owned()], whole.dependencies].concat();
        let place = Place::of(self.conda, self.settings, &packages);
        let known = match &place {
            Some(place) => self.as_known("install", prefix, place).await?.is_some(),
            None => false,
        };
        let updated = match known {
            true => Ok(()),
            false => self.update(prefix, &packages).await?,
        };
        if let (Ok(()), false, Some(place)) = (&updated, known, &place)
            && let Some(solved) = Solved::of(prefix, Vec::new())
        {
            place.write(&solved);
        }
        if let Err(failure) = updated {
            match failure.meaning {
                Meaning::Missing(_) | Meaning::Conflict(_) => {}
                _ => return Err(PythonError::Conda(failure)),
            }
            self.console.say(
                "Note: the task's conda_env_json can't be installed here (see above): its lists of \
                 packages are used.",
            );
            return Ok(None);
        }
        let reading = Reading {
            origin: "the task's conda_env_json",
            folder: job.root,
            root: job.root,
            env: &job.settings.environment,
            original: None,
        };
        let mut pip = parse(&whole.pip.join("\n"), &reading)?;
        for line in &mut pip.lines {
            // Of a repository the export knows the version, and the list of pip the place.
            let Line::Package { name, .. } = line else {
                continue;
            };
            let place = lists.pip.lines.iter().find(|other| match other {
                Line::Reference { name: of, .. } => {
                    of.as_deref().is_some_and(|of| normalise(of) == *name)
                }
                _ => false,
            });
            if let Some(place) = place {
                *line = place.clone();
            }
        }
        Ok(Some(pip))
    }

    /// The environment in conda's own words; `None` where it does not say it.
    async fn export(&self, prefix: &Path) -> Result<Option<String>, PythonError> {
        let place = prefix.to_string_lossy().into_owned();
        let said = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
        let console = Console::new({
            let said = said.clone();
            move |line| {
                if let Ok(mut said) = said.lock() {
                    said.push_str(line);
                    said.push('\n');
                }
            }
        });
        let args = match self.conda.dialect {
            Dialect::Conda | Dialect::Micromamba => {
                words(&["env", "export", "--json", "--prefix", &place])
            }
        };
        let finished = self.call(args, &console).await?;
        let said = said.lock().map(|said| said.clone()).unwrap_or_default();
        let document = said.find('{').and_then(|at| {
            let mut documents = serde_json::Deserializer::from_str(&said[at..]).into_iter();
            documents.next()?.ok()
        });
        let Some(Value::Object(mut document)) = document.filter(|_| finished.succeeded()) else {
            return Ok(None);
        };
        for of_this_machine in ["name", "prefix", "channels"] {
            document.remove(of_this_machine);
        }
        Ok(Some(Value::Object(document).to_string()))
    }
}

/// Takes out of what is wanted what conda can't have. Nothing is taken out where going on makes no
/// sense: the failure is then the end.
fn give_up(wanted: &mut Vec<Spec>, failure: &CondaFailure, all: bool) -> Vec<Spec> {
    let (names, conflict): (&[String], bool) = match &failure.meaning {
        Meaning::Missing(names) => (names, false),
        Meaning::Conflict(names) => (names, true),
        _ => return Vec::new(),
    };
    let named = |spec: &Spec| names.iter().any(|name| alike(name, &spec.name));
    // What the agent itself added is the first to go.
    let mut left: Vec<Spec> = wanted
        .extract_if(.., |spec| {
            let added = spec.otherwise == Otherwise::Dropped;
            (named(spec) && (all || !conflict)) || (conflict && added)
        })
        .collect();
    if left.is_empty() && conflict && all {
        // The list is pip's: pip may see no conflict.
        left = std::mem::take(wanted);
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, added: bool) -> Spec {
        let line = Line::Package {
            name: name.into(),
            text: name.into(),
            pin: None,
            has_marker: false,
        };
        Spec {
            name: name.into(),
            version: String::new(),
            otherwise: match added {
                true => Otherwise::Dropped,
                false => Otherwise::Pip(line),
            },
        }
    }

    #[test]
    fn what_is_given_up_when_conda_fails() {
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        for (meaning, all, left) in [
            (Meaning::Missing(names(&["torch"])), false, &["pytorch"][..]),
            (Meaning::Missing(names(&["cpuonly"])), false, &["cpuonly"]),
            (Meaning::Missing(names(&["what"])), false, &[]),
            (
                Meaning::Conflict(names(&["six"])),
                true,
                &["six", "cpuonly"],
            ),
            (Meaning::Conflict(names(&["six"])), false, &["cpuonly"]),
            (Meaning::Network, true, &[]),
        ] {
            let failure = CondaFailure {
                name: "conda",
                doing: "x",
                code: Some(1),
                meaning,
                lines: Vec::new(),
            };
            let mut wanted = vec![spec("six", false), spec("pytorch", false)];
            wanted.push(spec("cpuonly", true));
            let found = give_up(&mut wanted, &failure, all);
            let found: Vec<&str> = found.iter().map(|spec| spec.name.as_str()).collect();
            assert_eq!(found, left, "{:?}", failure.meaning);
            assert_eq!(wanted.len() + left.len(), 3);
            if matches!(failure.meaning, Meaning::Conflict(_)) && all {
                // With what the agent added gone, and still no way: all of pip's list.
                let failure = CondaFailure {
                    meaning: Meaning::Conflict(Vec::new()),
                    ..failure
                };
                let rest = give_up(&mut wanted, &failure, all);
                assert_eq!(rest.len(), 1, "{rest:?}");
            }
        }
    }

    #[test]
    fn the_lists_that_are_recorded() {
        let record = |name: &str, version: &str| Record {
            name: name.into(),
            version: version.into(),
            url: None,
            md5: None,
        };
        let records = [
            record("_libgcc_mutex", "0.1"),
            record("python", "3.11.7"),
            record("pytorch", "2.1.0"),
        ];
        let by_conda = lines(&records);
        assert_eq!(by_conda, ["python==3.11.7", "torch==2.1.0"]);
        assert_eq!(
            for_pip(&by_conda, &["six==1.17.0".to_owned()]).join("\n"),
            "# Conda Packages\n\npython==3.11.7\ntorch==2.1.0\n\n# pip Packages\n\nsix==1.17.0"
        );
        assert_eq!(for_pip(&[], &["six==1.17.0".to_owned()]), ["six==1.17.0"]);
    }
}
