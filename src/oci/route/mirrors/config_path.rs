//! Where containerd looks for `hosts.toml`: `config_path` of its own configuration.

use std::path::{Path, PathBuf};

use toml::Table;

use super::host_files::HostFiles;

const CONFIG: &str = "/etc/containerd/config.toml";
/// The value that containerd has where nothing is configured.
const DEFAULT: &str = "/etc/containerd/certs.d:/etc/docker/certs.d";
/// The sections that may hold it, of containerd 2 and 1.
const PLUGINS: [&str; 2] = ["io.containerd.cri.v1.images", "io.containerd.grpc.v1.cri"];
/// Most files that are imported.
const MAX_IMPORTS: usize = 64;

/// The folders in the order in which they are looked at. What is wrong on the way goes to `notes`: the runtime that runs
/// has read an earlier state of these files.
pub(super) fn read(files: &HostFiles<'_>, notes: &mut Vec<String>) -> Vec<PathBuf> {
    let mut value = None;
    let mut open = vec![PathBuf::from(CONFIG)];
    let mut seen = 0;
    while let Some(path) = open.pop().filter(|_| seen <= MAX_IMPORTS) {
        seen += 1;
        let table = match files.read(&path).map(|content| content.map(|content| parse(&content))) {
            Ok(None) => continue,
            Ok(Some(Ok(table))) => table,
            Ok(Some(Err(why))) => {
                notes.push(format!("{}: {why}", path.display()));
                continue;
            }
            Err(error) => {
                notes.push(format!("{}: {error}", path.display()));
                continue;
            }
        };
        // What is imported overrides, a later file an earlier one.
        value = config_path(&table).or(value);
        if path == Path::new(CONFIG) {
            let imports = table.get("imports").and_then(toml::Value::as_array).into_iter().flatten();
            for import in imports.filter_map(toml::Value::as_str) {
                open.extend(named(files, import, notes));
            }
            open.reverse();
        }
    }
    value.unwrap_or_else(|| DEFAULT.to_owned()).split(':').filter(|part| !part.is_empty()).map(PathBuf::from).collect()
}

fn parse(content: &[u8]) -> Result<Table, String> {
    let text = std::str::from_utf8(content).map_err(|error| error.to_string())?;
    text.parse().map_err(|error: toml::de::Error| error.message().to_owned())
}

fn config_path(table: &Table) -> Option<String> {
    let plugins = table.get("plugins")?.as_table()?;
    let of = |plugin: &str| plugins.get(plugin)?.get("registry")?.get("config_path")?.as_str();
    PLUGINS.iter().find_map(|plugin| of(plugin)).filter(|path| !path.is_empty()).map(str::to_owned)
}

/// The files that an import names; its last part may hold `*`.
fn named(files: &HostFiles<'_>, import: &str, notes: &mut Vec<String>) -> Vec<PathBuf> {
    let path = Path::new(CONFIG).parent().unwrap_or(Path::new("/")).join(import);
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Vec::new();
    };
    let Some((start, end)) = name.split_once('*') else { return vec![path] };
    match files.names(folder) {
        Ok(names) => {
            let fits = |name: &&String| {
                name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
            };
            names.iter().filter(fits).map(|name| folder.join(name)).collect()
        }
        Err(error) => {
            notes.push(format!("{}: {error}", folder.display()));
            Vec::new()
        }
    }
}
