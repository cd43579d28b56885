"""What is generated for the chart: its values, their schema, its README, and what it carries from elsewhere."""
