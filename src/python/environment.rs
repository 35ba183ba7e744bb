//! The task's virtual environment, made by hand (PEP 405) in a few milliseconds: a
//! `pyvenv.cfg`, links to the interpreter, an empty `site-packages`; and pip, unpacked from the
//! wheel that comes with the interpreter, because scripts call `python -m pip`.

use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use super::interpreter::Interpreter;
use super::settings::Settings;
use super::tool::{self, Call};
use super::tools::{Kind, Tools};
use super::{PythonError, Variables, conda};
use crate::console::Console;
use crate::task::Script;

/// Where the task runs and where its packages are.
#[derive(Debug, Clone)]
pub struct Environment {
    pub kind: Kind,
    /// What runs the task; `None` only for [`Kind::Nothing`].
    pub python: Option<PathBuf>,
    pub interpreter: Option<Interpreter>,
    /// Where its own packages are.
    pub site_packages: Vec<PathBuf>,
    /// The folder of an environment of its own.
    pub folder: Option<PathBuf>,
    /// It is there. One that may come from the cache is made when its packages are known.
    pub made: bool,
}

impl Environment {
    /// Whether `python -m pip` works in it.
    pub fn has_pip(&self) -> bool {
        self.site_packages
            .iter()
            .any(|dir| dir.join("pip/__main__.py").is_file())
    }
}

/// The environment that the run will have in `folder`, which must not exist or be empty: made at
/// once, or by [`install`](super::install::install), which may find it in the cache.
pub async fn create(
    tools: &Tools,
    script: &Script,
    folder: &Path,
    settings: &Settings,
    console: &Console,
    stop: &CancellationToken,
) -> Result<Environment, PythonError> {
    if let Some(found) = &tools.conda {
        return conda::create(found, script, folder, settings, console, stop).await;
    }
    let mut env = planned(tools, folder);
    let may_have_packages = !script.repository.is_empty()
        || ["pip", "conda"].iter().any(|key| {
            let text = script.requirements.text(key);
            text.is_some_and(|text| !text.is_empty())
        });
    if env.made || (settings.venvs_cache.is_some() && may_have_packages) {
        return Ok(env);
    }
    make(&mut env, settings, console, stop).await?;
    Ok(env)
}

/// What the environment will be; nothing is done yet.
pub(super) fn planned(tools: &Tools, folder: &Path) -> Environment {
    let Some(interpreter) = tools.interpreter.clone() else {
        return Environment {
            kind: Kind::Nothing,
            python: None,
            interpreter: None,
            site_packages: Vec::new(),
            folder: None,
            made: true,
        };
    };
    if tools.kind != Kind::Own {
        return Environment {
            kind: tools.kind,
            python: Some(interpreter.executable.clone()),
            site_packages: interpreter.site_packages.clone(),
            interpreter: Some(interpreter),
            folder: None,
            made: true,
        };
    }
    let library = folder.join(interpreter.library_folder());
    Environment {
        kind: Kind::Own,
        python: Some(folder.join("bin/python")),
        site_packages: vec![library.join("site-packages")],
        interpreter: Some(interpreter),
        folder: Some(folder.to_owned()),
        made: false,
    }
}

/// Makes a planned environment, empty but for pip.
pub(super) async fn make(
    env: &mut Environment,
    settings: &Settings,
    console: &Console,
    stop: &CancellationToken,
) -> Result<(), PythonError> {
    let (Some(interpreter), Some(folder), false) = (&env.interpreter, &env.folder, env.made) else {
        return Ok(());
    };
    let failed = |cause: String| PythonError::Create {
        dir: folder.to_owned(),
        cause,
        next: "Check that agent.venvs_dir can be written and that its disk has space.".into(),
    };
    if std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(failed("the folder is not empty".into()));
    }
    if interpreter.implementation == "cpython" {
        let (made, folder, wanted, kept) = (
            interpreter.clone(),
            folder.to_owned(),
            settings.system_site_packages,
            settings.cache.join("pip"),
        );
        tokio::task::spawn_blocking(move || lay_out(&made, &folder, wanted, &kept))
            .await
            .map_err(|e| failed(e.to_string()))?
            .map_err(|e| failed(e.to_string()))?;
    } else {
        make_with_venv(interpreter, folder, settings, console, stop).await?;
    }
    env.made = true;
    Ok(())
}

/// Other implementations lay their library out in their own way: their own `venv` knows it.
async fn make_with_venv(
    interpreter: &Interpreter,
    folder: &Path,
    settings: &Settings,
    console: &Console,
    stop: &CancellationToken,
) -> Result<(), PythonError> {
    let mut args: Vec<String> = ["-m", "venv"].map(str::to_owned).to_vec();
    if settings.system_site_packages {
        args.push("--system-site-packages".into());
    }
    args.push(folder.to_string_lossy().into_owned());
    let call = Call {
        program: interpreter.base_executable.clone(),
        args,
        env: tool::environment(&settings.environment, Variables::new()),
        dir: "/".into(),
    };
    let finished = tool::run(&call, console, stop).await?;
    if finished.succeeded() {
        return Ok(());
    }
    Err(PythonError::Create {
        dir: folder.to_owned(),
        cause: format!(
            "`python -m venv` failed: {}",
            finished.last_lines.join("\n")
        ),
        next: "Install the interpreter's venv module.".into(),
    })
}

fn lay_out(
    interpreter: &Interpreter,
    folder: &Path,
    system_site_packages: bool,
    kept: &Path,
) -> io::Result<()> {
    let base = &interpreter.base_executable;
    let home = base.parent().unwrap_or(Path::new("/"));
    let library = folder.join(interpreter.library_folder());
    let site_packages = library.join("site-packages");
    let bin = folder.join("bin");
    std::fs::create_dir_all(&site_packages)?;
    std::fs::create_dir_all(&bin)?;
    std::fs::create_dir_all(folder.join("include"))?;
    // Where the platform keeps binary modules in lib64, both names must lead to one folder.
    symlink("lib", folder.join("lib64"))?;
    symlink(base, bin.join("python"))?;
    symlink("python", bin.join("python3"))?;
    symlink(
        "python",
        bin.join(format!("python{}", interpreter.minor_version())),
    )?;
    std::fs::write(
        folder.join("pyvenv.cfg"),
        format!(
            "home = {}\ninclude-system-site-packages = {system_site_packages}\nversion = {}\n\
             executable = {}\n",
            home.display(),
            interpreter.full_version(),
            base.display(),
        ),
    )?;
    std::fs::write(bin.join("activate"), activation(folder))?;
    if let Some(wheel) = bundled_pip(interpreter) {
        unpack_pip(&wheel, kept, &site_packages, &bin, interpreter)?;
    }
    Ok(())
}

/// For `source …/bin/activate`, which shell scripts of tasks may do.
fn activation(folder: &Path) -> String {
    let folder = folder.to_string_lossy();
    let quoted = shlex::try_quote(&folder).unwrap_or_else(|_| "\"\"".into());
    format!(
        "deactivate () {{\n    PATH=\"$_OLD_PATH\"\n    export PATH\n    \
         unset VIRTUAL_ENV _OLD_PATH\n    unset -f deactivate\n    hash -r 2>/dev/null\n}}\n\
         VIRTUAL_ENV={quoted}\nexport VIRTUAL_ENV\n_OLD_PATH=\"$PATH\"\n\
         PATH=\"$VIRTUAL_ENV/bin:$PATH\"\nexport PATH\nunset PYTHONHOME\nhash -r 2>/dev/null\n"
    )
}

/// The pip wheel that comes with the interpreter: in `ensurepip`, or where Debian and Fedora
/// keep it.
fn bundled_pip(interpreter: &Interpreter) -> Option<PathBuf> {
    let mut folders = vec![interpreter.standard_library.join("ensurepip/_bundled")];
    // The distribution's wheel is made to fit the distribution's Python.
    if interpreter.standard_library.starts_with("/usr/lib") {
        folders.push("/usr/share/python-wheels".into());
        folders.push("/usr/share/python3-wheels".into());
    }
    folders
        .iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("pip-") && name.ends_with(".whl")
        })
}

/// Installs the wheel as pip would, so that pip can upgrade or remove itself. Its hundreds of files
/// are written once and kept below `kept`; every further environment gets hard links to them. pip
/// and uv never write into an installed file, they put another in its place.
fn unpack_pip(
    wheel: &Path,
    kept: &Path,
    site: &Path,
    bin: &Path,
    interpreter: &Interpreter,
) -> io::Result<()> {
    let kept = kept.join(kept_name(wheel)?);
    // In memory, where looking up one entry after another costs nothing.
    let bytes = io::Cursor::new(std::fs::read(wheel)?);
    let mut archive = zip::ZipArchive::new(bytes).map_err(io::Error::other)?;
    let mut record: Option<(PathBuf, String)> = None;
    let mut made: Option<PathBuf> = None;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(io::Error::other)?;
        let Some(name) = entry.enclosed_name() else {
            continue;
        };
        let path = site.join(&name);
        if entry.is_dir() {
            continue;
        }
        if let Some(folder) = path.parent()
            && made.as_deref() != Some(folder)
        {
            std::fs::create_dir_all(folder)?;
            made = Some(folder.to_owned());
        }
        if name.ends_with("RECORD") {
            record = Some((path, io::read_to_string(entry)?));
            continue;
        }
        let kept = kept.join(&name);
        if !link_kept(&kept, &path, entry.size()) {
            io::copy(&mut entry, &mut std::fs::File::create(&path)?)?;
            keep(&path, &kept);
        }
    }
    let Some((record, mut lines)) = record else {
        return Err(io::Error::other(format!(
            "{} has no RECORD",
            wheel.display()
        )));
    };
    let info = record.parent().unwrap_or(site).to_owned();
    std::fs::write(info.join("INSTALLER"), "pip\n")?;
    let info_name = info
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    lines.push_str(&format!("{info_name}/INSTALLER,,\n"));
    let python = bin.join("python");
    for name in [
        "pip",
        "pip3",
        &format!("pip{}", interpreter.minor_version()),
    ] {
        let script = bin.join(name);
        std::fs::write(&script, launcher(&python))?;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
        lines.push_str(&format!("../../../bin/{name},,\n"));
    }
    std::fs::write(&record, lines)
}

/// Tells this wheel from another of the same name: distributions change theirs.
fn kept_name(wheel: &Path) -> io::Result<String> {
    let meta = std::fs::metadata(wheel)?;
    let changed = meta.modified()?.duration_since(std::time::UNIX_EPOCH);
    let stem = wheel.file_stem().unwrap_or_default().to_string_lossy();
    let seconds = changed.unwrap_or_default().as_secs();
    Ok(format!("{stem}-{}-{seconds}", meta.len()))
}

/// Whether `path` could be made a link to the kept file. One of another length was cut off by a
/// crash of the machine.
fn link_kept(kept: &Path, path: &Path, length: u64) -> bool {
    std::fs::metadata(kept).is_ok_and(|meta| meta.len() == length)
        && std::fs::hard_link(kept, path).is_ok()
}

/// Keeps a file that is whole. Where that is not possible (another disk, no room) the next
/// environment is as slow as this one.
fn keep(path: &Path, kept: &Path) {
    let _ = std::fs::remove_file(kept);
    if let Some(folder) = kept.parent() {
        let _ = std::fs::create_dir_all(folder);
    }
    let _ = std::fs::hard_link(path, kept);
}

/// The console script of pip. A first line `#!PATH` is limited in length and can hold no blank,
/// so the shell starts Python, which takes the same two lines for a string.
fn launcher(python: &Path) -> String {
    format!(
        "#!/bin/sh\n'''exec' \"{}\" \"$0\" \"$@\"\n' '''\nimport sys\n\
         from pip._internal.cli.main import main\nif __name__ == '__main__':\n    \
         sys.exit(main())\n",
        python.display()
    )
}
