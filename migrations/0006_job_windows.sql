-- When a job may fetch, and how fast.

ALTER TABLE precache_jobs
    ADD COLUMN window_start smallint CHECK (window_start BETWEEN 0 AND 1439),
    ADD COLUMN window_end smallint CHECK (window_end BETWEEN 0 AND 1439),
    ADD COLUMN time_zone text NOT NULL DEFAULT '',
    ADD COLUMN max_rate bigint NOT NULL DEFAULT 0 CHECK (max_rate >= 0),
    ADD CHECK ((window_start IS NULL) = (window_end IS NULL));
COMMENT ON COLUMN precache_jobs.window_start IS 'Minute of the day from which the job fetches, by the clock of time_zone; null: at any time.';
COMMENT ON COLUMN precache_jobs.window_end IS 'Minute of the day at which it stops, not included; before window_start: on the next day.';
COMMENT ON COLUMN precache_jobs.time_zone IS 'A name of the IANA database; empty: UTC.';
COMMENT ON COLUMN precache_jobs.max_rate IS 'Bytes per second, of all its edges together; 0: no limit.';
