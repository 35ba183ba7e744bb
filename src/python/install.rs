//! Installs the task's packages into its environment, with uv or pip, and says what to record.

use std::path::Path;

use tokio_util::sync::CancellationToken;

use super::cache::key::is_kept;
use super::flags;
use super::freeze::{self, Package};
use super::git_access::check_program;
use super::interpreter::Interpreter;
use super::notebook::is_notebook;
use super::obtain::Job;
use super::project;
use super::record::{lines_to_record, recorded};
use super::requirements::{List, Reading, files_in_repository, normalise, parse, parse_files};
use super::settings::Settings;
use super::tools::{Kind, Tools};
use super::torch;
use super::{Environment, PythonError, conda};
use crate::console::Console;
use crate::secret::Secret;
use crate::task::{Requirements, Script};

/// Where the task's code is.
#[derive(Debug, Clone, Copy)]
pub struct Code<'a> {
    /// The root of the checkout; `None` for a stand-alone script.
    pub repository: Option<&'a Path>,
    pub working_dir: &'a Path,
    pub entry_point: &'a str,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Installed {
    /// The value for `tasks.set_requirements`; `None`: nothing is to be recorded.
    pub requirements_to_record: Option<Requirements>,
    /// The packages of the environment, one a line.
    pub summary: Vec<String>,
}

/// Installs what the task needs.
pub async fn install(
    env: &Environment,
    tools: &Tools,
    script: &Script,
    code: &Code<'_>,
    settings: &Settings,
    console: &Console,
    stop: &CancellationToken,
) -> Result<Installed, PythonError> {
    let Some(interpreter) = &env.interpreter else {
        return Ok(Installed::default());
    };
    if env.kind == Kind::AsItIs {
        return Ok(Installed::default());
    }
    let root = code.repository.unwrap_or(code.working_dir);
    let settings = &seen_from(root, settings, console);
    let project = code
        .repository
        .filter(|_| settings.standalone.is_none() && env.kind == Kind::Own)
        .and_then(|root| project::find(settings, root, code.working_dir));
    let job = Job {
        env,
        tools,
        settings,
        root,
        repository: &script.repository,
        console,
        stop,
    };
    if tools.conda.is_some() {
        let lists = conda_lists(script, code, settings, console)?;
        let mut more = List::default();
        if is_notebook(code.entry_point) {
            more.add("ipython");
            more.add("nbconvert");
        }
        if settings.force_task_init {
            more.add("clearml");
        }
        return conda::fill(&job, script, lists, more).await;
    }
    let synced = match &project {
        Some(project) => job.sync(project).await?,
        None => false,
    };
    let mut list = match synced {
        true => List::default(),
        false => read_list(script, code, settings, console)?,
    };
    if is_notebook(code.entry_point) {
        list.add("ipython");
        list.add("nbconvert");
    }
    if settings.force_task_init {
        list.add("clearml");
    }
    for note in &list.notes {
        console.say(format!("Note: {note}."));
    }

    let requested = list.names();
    let mut whole = list.clone();
    if !list.has_packages() {
        whole.lines.clear();
    }
    match synced {
        false => {
            if settings.standalone.is_none() {
                // Before the rest of them is built, which may be kept and need no git.
                let mut of_each_run = list.clone();
                of_each_run.lines.retain(|line| !is_kept(line));
                check_program(&of_each_run, env.kind, settings)?;
            }
            job.make_and_fill(&list).await?;
        }
        true => job.add_to_project(&list).await?,
    }

    let mut packages = freeze::installed(&env.site_packages);
    if settings.system_site_packages && env.kind == Kind::Own {
        add_used_of_the_system(&mut packages, interpreter, &requested);
    }
    if let Some(note) = torch::cpu_build(&env.site_packages, tools.cuda) {
        console.say(format!("Note: {note}."));
    }
    let summary = lines_to_record(&packages, &whole, interpreter.version, &requested, root);
    let listed = script
        .requirements
        .text("pip")
        .is_some_and(|text| !text.is_empty());
    let record = (listed || code.repository.is_some()) && settings.standalone.is_none();
    Ok(Installed {
        requirements_to_record: record.then(|| recorded(&script.requirements, &summary)),
        summary,
    })
}

/// The settings with each file that pip's flags name in full: the tools are run in another folder, and
/// these names are those of pip run in the checkout.
fn seen_from(root: &Path, settings: &Settings, console: &Console) -> Settings {
    let mut settings = settings.clone();
    settings.extra_flags = flags::seen_from(root, &settings.extra_flags);
    for place in &mut settings.indexes.find_links {
        *place = Secret::new(flags::path_seen_from(root, place.expose()));
    }
    let reading = Reading {
        origin: "agent.package_manager.extra_pip_install_flags",
        folder: root,
        root,
        env: &settings.environment,
        original: None,
    };
    let differs = flags::paths(&settings.extra_flags)
        .into_iter()
        .any(|(flag, path)| match flag {
            "-e" | "--editable" => true,
            "-r" | "--requirement" => {
                // Where it can't be read, pip says so.
                let list = parse_files(&[path.into()], &reading).unwrap_or_default();
                !list.lines.iter().all(is_kept)
            }
            _ => false,
        });
    if differs && settings.venvs_cache.take().is_some() {
        console.say(
            "Environment: not kept, because extra_pip_install_flags name what is another thing in \
             each run",
        );
    }
    settings
}

/// What was listed and is the system's: another machine would have to install it.
fn add_used_of_the_system(
    packages: &mut Vec<Package>,
    interpreter: &Interpreter,
    requested: &[String],
) {
    let own: Vec<String> = packages.iter().map(|p| normalise(&p.name)).collect();
    let used = freeze::installed(&interpreter.site_packages)
        .into_iter()
        .filter(|package| {
            let name = normalise(&package.name);
            requested.contains(&name) && !own.contains(&name)
        });
    packages.extend(used);
    packages.sort_by_key(|package| normalise(&package.name));
}

/// The lists that count for conda.
fn conda_lists(
    script: &Script,
    code: &Code<'_>,
    settings: &Settings,
    console: &Console,
) -> Result<conda::Lists, PythonError> {
    let text = |key: &str| script.requirements.text(key);
    let filled = |key: &str| text(key).filter(|text| !text.is_empty());
    let of_task = !settings.force_repo_requirements_txt
        && ["pip", "conda"].iter().any(|key| filled(key).is_some());
    if !of_task {
        return Ok(conda::Lists {
            pip: read_list(script, code, settings, console)?,
            conda: None,
            exported: None,
        });
    }
    let original = settings.force_original_requirements
        && ["org_pip", "org_conda"]
            .iter()
            .any(|key| filled(key).is_some());
    let exported = filled("conda_env_json").filter(|_| !original);
    let (pip, listed) = match original {
        true => (
            filled("org_pip").or_else(|| text("pip")),
            filled("org_conda"),
        ),
        false => (text("pip"), text("conda")),
    };
    console.say(match (original, &exported, &listed) {
        (true, ..) => {
            "Packages: the task's first lists (org_pip, org_conda), because \
             agent.package_manager.force_original_requirements is set"
        }
        (_, Some(_), _) => "Packages: the task's exported conda environment, else its own lists",
        (_, None, Some(_)) => "Packages: the task's own lists (conda, pip)",
        (_, None, None) => "Packages: the task's own list (pip), by conda what conda has of it",
    });
    let root = code.repository.unwrap_or(code.working_dir);
    let first = filled("org_pip");
    let reading = Reading {
        origin: "the task's packages",
        folder: root,
        root,
        env: &settings.environment,
        original: first.as_deref(),
    };
    Ok(conda::Lists {
        pip: parse(&pip.unwrap_or_default(), &reading)?,
        conda: listed,
        exported,
    })
}

/// The list that counts: the task's own, else the repository's files.
fn read_list(
    script: &Script,
    code: &Code<'_>,
    settings: &Settings,
    console: &Console,
) -> Result<List, PythonError> {
    let text = |key: &str| script.requirements.text(key).filter(|t| !t.is_empty());
    let (listed, original) = (text("pip"), text("org_pip"));
    let has_list = listed.is_some() || text("conda").is_some();
    let root = code.repository.unwrap_or(code.working_dir);
    let reading = Reading {
        origin: "the task's packages",
        folder: root,
        root,
        env: &settings.environment,
        original: original.as_deref(),
    };
    if has_list && !settings.force_repo_requirements_txt {
        let chosen = match (&original, settings.force_original_requirements) {
            (Some(original), true) => Some(original),
            _ => listed.as_ref(),
        };
        let Some(chosen) = chosen else {
            console.say(
                "Note: the task lists conda packages only, and packages are installed with pip's \
                 rules here: nothing is installed.",
            );
            return Ok(List::default());
        };
        let original = matches!(
            (&original, settings.force_original_requirements),
            (Some(_), true)
        );
        console.say(match original {
            true => {
                "Packages: the task's first list (org_pip), because \
                 agent.package_manager.force_original_requirements is set"
            }
            false => "Packages: the task's own list",
        });
        let list = parse(chosen, &reading)?;
        if !list.has_packages() {
            console.say(
                "Note: the task's list of packages has only comments: nothing is installed, and \
                 the repository's requirements.txt is not looked at.",
            );
        }
        return Ok(list);
    }
    let files = match code.repository {
        Some(root) => files_in_repository(root, code.working_dir, code.entry_point),
        None => Vec::new(),
    };
    if files.is_empty() {
        console.say(match code.repository {
            None => "Packages: none are listed",
            Some(_) => "Packages: none are listed, neither in the task nor in a requirements.txt",
        });
        return Ok(List::default());
    }
    // One list of all files: where two name a package, the file nearest to the script counts.
    let shown: Vec<_> = files
        .iter()
        .map(|file| file.strip_prefix(root).unwrap_or(file).to_string_lossy())
        .collect();
    let because = match has_list {
        true => "agent.package_manager.force_repo_requirements_txt is set",
        false => "the task has no list",
    };
    console.say(format!(
        "Packages: the repository's {}, because {because}",
        shown.join(", ")
    ));
    parse_files(&files, &reading)
}
