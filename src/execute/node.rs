//! Several nodes that run one task: only the first takes it and says what became of it.

use super::job_env::Variables;

/// `RANK`, else `SLURM_PROCID`; what is no number is 0. As in the Python agent.
pub fn rank(env: &Variables) -> u32 {
    let rank = env.get("RANK").or_else(|| env.get("SLURM_PROCID"));
    rank.and_then(|rank| rank.trim().parse().ok()).unwrap_or(0)
}

/// What stands before each piece of this rank's log on the server, in a colour of its own:
/// `RANK 3:`, where `CLEARML_MULTI_NODE_SINGLE_TASK` says that one task has the logs of all.
pub fn log_mark(env: &Variables, rank: u32) -> String {
    let single = env
        .get("CLEARML_MULTI_NODE_SINGLE_TASK")
        .and_then(|value| value.trim().parse::<i64>().ok());
    match single {
        Some(1..) if rank > 0 => {
            format!("\u{1b}[38;5;{}mRANK {rank}:\u{1b}[0m\n", 20 + rank % 210)
        }
        _ => String::new(),
    }
}

/// The end of the log's last line.
pub fn suffix(rank: u32) -> String {
    match rank {
        0 => String::new(),
        rank => format!(" - rank {rank}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars(pairs: &[(&str, &str)]) -> Variables {
        let owned = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn ranks() {
        for (env, expected) in [
            (&[][..], 0),
            (&[("RANK", "3")], 3),
            (&[("SLURM_PROCID", "2")], 2),
            (&[("RANK", "0"), ("SLURM_PROCID", "2")], 0),
            (&[("RANK", ""), ("SLURM_PROCID", "2")], 0),
            (&[("RANK", "x")], 0),
        ] {
            assert_eq!(rank(&vars(env)), expected, "{env:?}");
        }
    }

    #[test]
    fn logs_are_marked_where_they_share_a_task() {
        let single = |value| vars(&[("CLEARML_MULTI_NODE_SINGLE_TASK", value)]);
        assert_eq!(
            log_mark(&single("1"), 3),
            "\u{1b}[38;5;23mRANK 3:\u{1b}[0m\n"
        );
        assert_eq!(
            log_mark(&single("2"), 211),
            "\u{1b}[38;5;21mRANK 211:\u{1b}[0m\n"
        );
        for (env, rank) in [
            (single("1"), 0),
            (single("0"), 3),
            (single("-1"), 3),
            (vars(&[]), 3),
        ] {
            assert_eq!(log_mark(&env, rank), "");
        }
    }
}
