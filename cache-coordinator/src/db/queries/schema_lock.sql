-- Held until the transaction ends: one coordinator migrates at a time. The number is arbitrary and
-- ours.
SELECT pg_advisory_xact_lock(7400220001)
