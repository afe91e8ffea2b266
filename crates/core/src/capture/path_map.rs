//! The server's paths and the agent's: two containers seldom call one folder the same.

use std::path::PathBuf;

/// Pairs of a folder in the server's view and the same in the agent's. Where none fits, both views
/// are taken to agree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathMap(pub Vec<(String, PathBuf)>);

impl PathMap {
    /// The agent's view of a path of the server, by the longest folder that holds it.
    pub fn agent_view(&self, server_path: &str) -> PathBuf {
        let inside = |(server, agent): &(String, PathBuf)| {
            let server = server.trim_end_matches('/');
            let rest = server_path.strip_prefix(server)?;
            // `/data` holds `/data` and `/data/x`, not `/database`.
            (rest.is_empty() || rest.starts_with('/'))
                .then(|| (server.len(), agent.join(rest.trim_start_matches('/'))))
        };
        let longest = self.0.iter().filter_map(inside).max_by_key(|(len, _)| *len);
        longest.map_or_else(|| PathBuf::from(server_path), |(_, path)| path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_folder_that_holds_a_path_wins_and_names_that_begin_alike_do_not_count() {
        let map =
            PathMap(vec![("/data".into(), "/mnt/a".into()), ("/data/profiles/".into(), "/mnt/b".into())]);
        for (server, agent) in [
            ("/data/x", "/mnt/a/x"),
            ("/data/profiles/skewtrap-i1", "/mnt/b/skewtrap-i1"),
            ("/data", "/mnt/a"),
            ("/database/x", "/database/x"),
        ] {
            assert_eq!(map.agent_view(server), PathBuf::from(agent), "{server}");
        }
    }
}
