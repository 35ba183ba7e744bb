//! The call of Apptainer: its words, none of them secret, and the environment that it is called with.

use super::arguments::Bind;
use super::program::Brand;
use crate::config::Variables;
use crate::container::handover;
use crate::process::guard;

/// What the words are made of.
#[derive(Debug)]
pub struct Call<'a> {
    /// The run's folder for `/tmp` and `/var/tmp`, and its home, with the home's path in the container.
    pub work: &'a str,
    pub home: (&'a str, &'a str),
    pub flags: &'a [String],
    pub gpus: &'a [&'static str],
    pub working_dir: Option<&'a str>,
    pub binds: &'a [Bind],
    /// An address is fetched again even if it is in Apptainer's cache.
    pub pull_always: bool,
    pub image: String,
    /// For the agent inside.
    pub words: Vec<String>,
}

impl Call<'_> {
    /// As docker has it: nothing of the machine's folders and variables is in the container, but for what is
    /// asked for.
    pub fn words(&self) -> Vec<String> {
        let mut words: Vec<String> = ["exec", "--contain", "--cleanenv", "--no-umask"]
            .map(str::to_owned)
            .into();
        words.extend(self.flags.iter().cloned());
        words.extend(self.gpus.iter().map(|flag| (*flag).to_owned()));
        let (home, inside) = self.home;
        words.extend(["--workdir".into(), self.work.to_owned()]);
        words.extend(["--home".into(), format!("{home}:{inside}")]);
        let working_dir = self.working_dir.unwrap_or("/");
        words.extend(["--pwd".into(), working_dir.to_owned()]);
        for bind in self.binds {
            words.extend(bind_words(bind));
        }
        if self.pull_always {
            words.push("--disable-cache".into());
        }
        words.push(self.image.clone());
        words.extend(handover::entrypoint());
        words.extend(self.words.iter().cloned());
        words
    }
}

/// `--bind` takes colons and commas for its own.
fn bind_words(bind: &Bind) -> [String; 2] {
    let plain = |path: &str| !path.contains([':', ',', '"', '\\']);
    let Bind {
        source,
        target,
        read_only,
        ..
    } = bind;
    if plain(source) && plain(target) {
        let mode = if *read_only { ":ro" } else { "" };
        return ["--bind".into(), format!("{source}:{target}{mode}")];
    }
    let quoted = |key: &str, path: &str| format!("\"{key}={}\"", path.replace('"', "\"\""));
    let mode = if *read_only { ",ro" } else { "" };
    let source = quoted("source", source);
    let target = quoted("destination", target);
    [
        "--mount".into(),
        format!("type=bind,{source},{target}{mode}"),
    ]
}

/// Variables of ClearML are for agents: what they hold is in the private folder. Apptainer itself reads its
/// own (`APPTAINER_BIND`, `APPTAINER_CACHEDIR`, …) and the proxies.
pub fn environment(
    inherited: &Variables,
    brand: Brand,
    run: &str,
    uv_cache: Option<&str>,
    no_gpus: bool,
) -> Variables {
    const OF_GPUS: [&str; 4] = ["NV", "NVCCLI", "ROCM", "USE_NVCCLI"];
    let of_agents = |name: &str| {
        let name = name
            .strip_prefix("APPTAINERENV_")
            .or(name.strip_prefix("SINGULARITYENV_"))
            .unwrap_or(name);
        ["CLEARML_", "TRAINS_"]
            .iter()
            .any(|start| name.starts_with(start))
    };
    let asks_for_gpus = |name: &str| {
        let of_apptainer = name
            .strip_prefix("APPTAINER_")
            .or(name.strip_prefix("SINGULARITY_"));
        no_gpus && of_apptainer.is_some_and(|rest| OF_GPUS.contains(&rest))
    };
    let mut env: Variables = inherited
        .iter()
        .filter(|(name, _)| !of_agents(name) && !asks_for_gpus(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    // By this whoever outlives a killed agent is found.
    env.insert(guard::MARK.to_owned(), run.to_owned());
    let prefix = brand.inside_prefix();
    env.insert(format!("{prefix}{}", guard::MARK), run.to_owned());
    if let Some(uv_cache) = uv_cache {
        env.insert(format!("{prefix}UV_CACHE_DIR"), uv_cache.to_owned());
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_call() {
        let bind = |source: &str, target: &str, read_only| Bind {
            source: source.into(),
            target: target.into(),
            read_only,
            make: false,
        };
        let call = Call {
            work: "/runs/r/work",
            home: ("/runs/r/home", "/home/ada"),
            flags: &["--pid".to_owned()],
            gpus: &["--nv"],
            working_dir: None,
            binds: &[
                bind("/runs/r/agent", "/.clearml-agent", false),
                bind("/a:b,\"c\"", "/x", true),
            ],
            pull_always: false,
            image: "docker://python:3.12".into(),
            words: vec!["execute".into()],
        };
        assert_eq!(
            call.words().join("\n"),
            "exec\n--contain\n--cleanenv\n--no-umask\n--pid\n--nv\n--workdir\n/runs/r/work\n--home\n\
             /runs/r/home:/home/ada\n--pwd\n/\n--bind\n/runs/r/agent:/.clearml-agent\n--mount\n\
             type=bind,\"source=/a:b,\"\"c\"\"\",\"destination=/x\",ro\ndocker://python:3.12\n/bin/sh\n\
             /.clearml-agent/start\nexecute"
        );
    }

    #[test]
    fn what_it_is_called_with() {
        let inherited = [
            ("PATH", "/bin"),
            ("CLEARML_API_SECRET_KEY", "s"),
            ("APPTAINERENV_CLEARML_API_SECRET_KEY", "s"),
            ("APPTAINER_BIND", "/scratch"),
            ("APPTAINER_NV", "1"),
            ("APPTAINERENV_LANG", "C"),
        ];
        let inherited = inherited.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let env = environment(
            &Variables::from(inherited),
            Brand::Apptainer,
            "r1",
            Some("/cache/uv"),
            true,
        );
        let names: Vec<&str> = env.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "APPTAINERENV_CLEARML_AGENT_RUN",
                "APPTAINERENV_LANG",
                "APPTAINERENV_UV_CACHE_DIR",
                "APPTAINER_BIND",
                "CLEARML_AGENT_RUN",
                "PATH"
            ]
        );
    }
}
