//! `lifeboat man`

use std::path::Path;

use clap::{Command, CommandFactory};

use crate::cli::args::{Cli, ManArgs};
use crate::cli::{App, Exit};
use crate::error::{IoContext, Result};

pub(super) fn run(app: &App, args: &ManArgs) -> Result<Exit> {
    let mut command = Cli::command();
    command.build();
    if let Some(dir) = &args.dir {
        std::fs::create_dir_all(dir).io_context(|| format!("make folder {}", dir.display()))?;
        let mut count = 0;
        write(&command, dir, &mut count)?;
        app.output.result(&serde_json::json!({ "schema": "lifeboat.man/1", "pages": count }), || {
            format!("{count} pages written to {}\n", dir.display())
        })?;
    } else {
        app.output.raw(&page(&command)?)?;
    }
    Ok(None)
}

/// One page for a command and each below it: `lifeboat-drill-run.1`.
fn write(command: &Command, dir: &Path, count: &mut u32) -> Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).replace(' ', "-");
    let path = dir.join(format!("{name}.1"));
    std::fs::write(&path, page(command)?).io_context(|| format!("write {}", path.display()))?;
    *count += 1;
    command.get_subcommands().filter(|sub| !sub.is_hide_set()).try_for_each(|sub| write(sub, dir, count))
}

fn page(command: &Command) -> Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page).io_context(|| "write the manual page".to_owned())?;
    Ok(page)
}
