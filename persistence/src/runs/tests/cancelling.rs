//! Bulk cancellation of runs.

use sea_orm::DbBackend;

use super::*;

/// Inputs may be large, and are not needed. SQLite would fail to read the ones in this test.
#[tokio::test]
async fn bulk_cancelling_reads_no_inputs() {
    for fixture in engines().await {
        let acme = house(&fixture, "acme", &["a"]).await;
        let mut runs = Vec::new();
        for _ in 0..3 {
            runs.push(create(&acme, new_run("a")).await.unwrap().run.id);
        }
        if fixture.store.backend() == DbBackend::Sqlite {
            fixture.execute("UPDATE runs SET input = x'ff'").await;
        }
        let (slot, filter) = (Slot::new(), RunFilter::default());
        acme.runs()
            .cancel_runs(&context(), &filter, |done| slot.keep(done))
            .await
            .unwrap();
        assert_eq!(slot.take().cancelled, 3);
        let kept = "runs WHERE status = 'cancelled' AND length(input) > 0";
        assert_eq!(fixture.count(kept).await, 3, "each keeps its input");
    }
}
