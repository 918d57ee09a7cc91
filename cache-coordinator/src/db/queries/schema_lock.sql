-- Held until the transaction ends, so that one coordinator migrates at a time. The number is
-- arbitrary.
SELECT pg_advisory_xact_lock(7400220001)
