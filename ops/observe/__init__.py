"""A real Prometheus beside a real Easel: for the test of the dashboards' queries, for drills, and for their pictures."""
