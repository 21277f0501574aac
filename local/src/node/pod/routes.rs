//! The rules in a pod's network by which service IPs lead to endpoints.

use super::Worker;
use crate::node::holder::Holder;
use crate::node::services;
use std::fs;
use std::rc::Rc;

impl Worker {
    /// Loads the rules that service IPs follow, and keeps them up to date as long as the pod lives.
    pub(super) async fn follow_routes(&self, holder: &Rc<Holder>) -> Result<(), String> {
        let mut tables = self.node.routes.subscribe();
        let mut applied = tables.borrow_and_update().clone();
        let file = self.shared.dir.join("services.nft");
        load(holder, &file, &services::script(&applied.table)).await?;
        let (node, key, holder) = (Rc::clone(&self.node), self.key.clone(), Rc::clone(holder));
        let me = node.routes.join(applied.generation);
        tokio::task::spawn_local(async move {
            loop {
                tokio::select! {
                    changed = tables.changed() => if changed.is_err() { return },
                    () = holder.gone() => return,
                }
                let wanted = tables.borrow_and_update().clone();
                let script = services::changes(&applied.table, &wanted.table);
                let mut loaded = if script.is_empty() { Ok(()) } else { load(&holder, &file, &script).await };
                if let Err(error) = &loaded {
                    tracing::debug!(pod = %key, error, "service rules are loaded anew");
                    let script = format!("delete table ip weft_services\n{}", services::script(&wanted.table));
                    loaded = load(&holder, &file, &script).await;
                }
                if let Err(error) = loaded {
                    tracing::debug!(pod = %key, error, "service rules no longer follow");
                    return;
                }
                me.reached(wanted.generation);
                applied = wanted;
            }
        });
        Ok(())
    }
}

async fn load(holder: &Holder, file: &std::path::Path, script: &str) -> Result<(), String> {
    fs::write(file, script).map_err(|e| format!("cannot write service rules: {e}"))?;
    holder
        .program(&["nft", "-f", &file.to_string_lossy()], None)
        .await
        .map(drop)
        .map_err(|e| format!("service rules: {e}"))
}
